package admin

import (
	"fmt"
	"io"
	"net/http"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/hub/fleet"
)

// manifestsPath is the one endpoint that a factory station may use, too.
const manifestsPath = "/v1/manifests"

// serveStation takes a manifest from the station that made it, by the station's own
// certificate, and reports whether it answered. Whatever else a station asks for is left
// to the refusal of those who are no operators.
func (a *api) serveStation(w http.ResponseWriter, r *http.Request) bool {
	if r.Method != http.MethodPost || r.URL.Path != manifestsPath {
		return false
	}
	peer, err := a.config.Verifier.Verify(*r.TLS, identity.RoleStation)
	if err != nil {
		return false
	}
	if err := contentType(r, ManifestMediaType); err != nil {
		a.fail(w, r, err)
		return true
	}
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxManifest))
	if err != nil {
		a.fail(w, r, bodyProblem(err))
		return true
	}
	report, err := a.importOf(r, peer, data)
	if err != nil {
		a.fail(w, r, err)
		return true
	}
	writeJSON(w, report)
	return true
}

// importOf imports a manifest of that station; another's is refused unread.
func (a *api) importOf(r *http.Request, peer mtls.Peer, data []byte) (fleet.ImportReport, error) {
	author, err := a.config.Fleet.ManifestStation(data)
	if err != nil {
		return fleet.ImportReport{}, err
	}
	if author != peer.Identity.ID {
		a.config.Log.Warn("API request refused", "address", r.RemoteAddr, "method", r.Method, "path", r.URL.Path, "station", peer.Identity.ID, "manifest_of", author)
		return fleet.ImportReport{}, problem(http.StatusForbidden, codeDenied,
			fmt.Sprintf("station %s sends its own manifests, and this one is station %s's", peer.Identity.ID, author))
	}
	return a.config.Fleet.Import(r.Context(), data, fleet.Actor{Name: peer.Identity.String(), Address: r.RemoteAddr})
}
