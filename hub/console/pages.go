package console

import (
	"cmp"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/registry"
)

// pageSize is how many devices a page has, and how many of anything else the overview.
const (
	pageSize = 50
	someFew  = 10
)

// device is one as the API shows it.
type device struct {
	registry.Device
	Session *struct {
		Address     string    `json:"address"`
		ConnectedAt time.Time `json:"connected_at"`
		TLS         string    `json:"tls"`
		Suite       string    `json:"suite"`
		Curve       string    `json:"curve"`
		Resumed     bool      `json:"resumed"`
	} `json:"session"`
	Handshakes *struct {
		Since   time.Time `json:"since"`
		Full    uint64    `json:"full"`
		Resumed uint64    `json:"resumed"`
		Refused uint64    `json:"refused"`
	} `json:"handshakes"`
}

// why is the answer to why its connections failed.
type why struct {
	Verdict string `json:"verdict"`
	Events  []struct {
		At      time.Time `json:"at"`
		Kind    string    `json:"kind"`
		Words   string    `json:"words"`
		Address string    `json:"address"`
		Times   int       `json:"times"`
	} `json:"events"`
}

// count is how many devices are in a state.
type count struct {
	State registry.State
	N     int
}

// numbers are what is kept fresh on every page that has them.
type numbers struct {
	Counts []count
	Total  int
	Online int
}

func (c *console) numbers() numbers {
	n := numbers{Online: c.config.Online()}
	counts := c.config.Counts()
	for _, state := range registry.States() {
		n.Counts = append(n.Counts, count{state, counts[state]})
		n.Total += counts[state]
	}
	return n
}

func (c *console) overview(w http.ResponseWriter, r *http.Request) {
	var page struct {
		numbers
		Proposals []fleet.Proposal
		Anomalies []anomaly
		Policy    *policyState
	}
	page.numbers = c.numbers()
	var proposals struct {
		Proposals []fleet.Proposal `json:"proposals"`
	}
	var anomalies struct {
		Anomalies []anomaly `json:"anomalies"`
	}
	some := "?limit=" + strconv.Itoa(someFew)
	_, err := c.ask(r, request{method: http.MethodGet, path: "/v1/proposals" + some}, &proposals)
	err = errors.Join(err, c.perhaps(r, "/v1/anomalies"+some, &anomalies), c.perhaps(r, "/v1/policy", &page.Policy))
	if err != nil {
		c.refuse(w, r, err)
		return
	}
	page.Proposals, page.Anomalies = proposals.Proposals, anomalies.Anomalies
	c.show(w, r, http.StatusOK, "overview", view{Title: "Fleet", Page: page})
}

type anomaly struct {
	At     time.Time `json:"at"`
	Device string    `json:"device"`
	Signal string    `json:"signal"`
	Detail string    `json:"detail"`
}

type policyState struct {
	Source  string    `json:"source"`
	Rules   int       `json:"rules"`
	Since   time.Time `json:"since"`
	Refused string    `json:"refused"`
}

// perhaps asks for what a hub needn't have.
func (c *console) perhaps(r *http.Request, path string, answer any) error {
	_, err := c.ask(r, request{method: http.MethodGet, path: path}, answer)
	if why, ok := errors.AsType[*refusal](err); ok && why.Status == http.StatusNotFound {
		return nil
	}
	return err
}

func (c *console) devices(w http.ResponseWriter, r *http.Request) {
	var page struct {
		Select  string
		Devices []device `json:"devices"`
		Next    string   `json:"next"`
		Problem string
		More    string // the address of the next page
	}
	page.Select = r.FormValue("select")
	query := url.Values{"limit": {strconv.Itoa(pageSize)}}
	for name, value := range map[string]string{"select": page.Select, "after": r.FormValue("after")} {
		if value != "" {
			query.Set(name, value)
		}
	}
	status := http.StatusOK
	_, err := c.ask(r, request{method: http.MethodGet, path: "/v1/devices?" + query.Encode()}, &page)
	if why, ok := errors.AsType[*refusal](err); ok && why.Status == http.StatusBadRequest {
		page.Problem, status, err = why.Detail, why.Status, nil // a slip in the selector is mended in its place
	}
	if err != nil {
		c.refuse(w, r, err)
		return
	}
	if page.Next != "" {
		page.More = "/console/devices?" + url.Values{"select": {page.Select}, "after": {page.Next}}.Encode()
	}
	c.show(w, r, status, "devices", view{Title: "Devices", Page: page})
}

// devicePage is one device with what can be done to it.
type devicePage struct {
	Device device
	Tag    string // of the record as it is shown
	Why    why
	Verbs  []fleet.Verb
	Done   string // the receipt of what was just done
}

func (c *console) device(w http.ResponseWriter, r *http.Request) {
	var page devicePage
	header, err := c.ask(r, request{method: http.MethodGet, path: devicePath(r.PathValue("id"), "")}, &page.Device)
	if err == nil {
		err = c.perhaps(r, devicePath(r.PathValue("id"), "/why"), &page.Why)
	}
	if err != nil {
		c.refuse(w, r, err)
		return
	}
	for _, t := range page.Device.History { // an address can say anything
		if t.Receipt != "" && t.Receipt == r.FormValue("done") {
			page.Done = t.Receipt
		}
	}
	page.Tag, page.Verbs = header.Get("ETag"), possible(page.Device.State)
	c.show(w, r, http.StatusOK, "device", view{Title: page.Device.ID, Page: page})
}

func devicePath(id, rest string) string { return "/v1/devices/" + url.PathEscape(id) + rest }

// possible are the verbs of the console for a device in a state. The fleet decides; this only
// spares the operator buttons that would be refused.
func possible(state registry.State) (list []fleet.Verb) {
	for _, v := range []struct {
		verb fleet.Verb
		to   registry.State
	}{{fleet.VerbSuspend, registry.StateSuspended}, {fleet.VerbRevoke, registry.StateRevoked}, {fleet.VerbRetire, registry.StateRetired}} {
		if state.MayBecome(v.to) {
			list = append(list, v.verb)
		}
	}
	switch state {
	case registry.StateSuspended:
		list = append([]fleet.Verb{fleet.VerbResume}, list...)
	case registry.StateQuarantined:
		list = append([]fleet.Verb{fleet.VerbApprove}, list...)
	}
	return list
}

// Because is why a device is as it is.
func (d device) Because() string { return cmp.Or(d.Note, d.Reason) }
