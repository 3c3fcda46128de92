package admin

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/textproto"
	"strings"

	"github.com/fleethub/fleethub/hub/consumer"
	"github.com/fleethub/fleethub/hub/registry"
)

// tag is the entity tag of a device as it is shown: the revision of its record, a dot, and a
// hash of what is live. Both change what the caller sees, and only the first is anybody's
// doing.
func (d Device) tag() string {
	live, err := json.Marshal([]any{d.Session, d.Handshakes, d.FirstSeen, d.LastSeen, d.standings()})
	if err != nil {
		return "" // no tag is better than a wrong one
	}
	sum := sha256.Sum256(live)
	return `"` + d.Revision() + "." + base64.RawURLEncoding.EncodeToString(sum[:9]) + `"`
}

func (d Device) standings() []registry.Standing {
	standings := make([]registry.Standing, 0, len(d.Certificates))
	for _, c := range d.Certificates {
		standings = append(standings, c.Standing)
	}
	return standings
}

// expectedRevision is the revision of the record that the request's If-Match demands, "" if it
// demands none. The tag may be that of a device as it was shown, or the revision alone.
func expectedRevision(r *http.Request) (string, error) {
	tag, err := expectedTag(r)
	if tag == "" || err != nil {
		return "", err
	}
	revision, _, _ := strings.Cut(tag, ".")
	if revision == "" { // it would pass for none
		return "", invalid("If-Match: %.80q has no revision before its dot, as the entity tag of a device does", tag)
	}
	return revision, nil
}

// expectedTag is the one strong entity tag that the request's If-Match demands, without its
// quotes, "" if it demands none.
func expectedTag(r *http.Request) (string, error) {
	list := r.Header.Values("If-Match")
	if len(list) > 1 {
		return "", invalid("If-Match is there %d times; send it once", len(list))
	}
	match := textproto.TrimString(r.Header.Get("If-Match"))
	if len(list) == 0 || match == "*" { // what isn't there is refused without
		return "", nil
	}
	one, rest, ok := nextTag(match)
	if !ok || rest != "" || one[0] != '"' || len(one) < 3 {
		return "", invalid("If-Match: %.80s is not one strong entity tag, such as a GET has", match)
	}
	return strings.Trim(one, `"`), nil
}

// consumerTag is the entity tag of a consumer: its place.
func consumerTag(c consumer.Consumer) string { return etag(c.Next) }
