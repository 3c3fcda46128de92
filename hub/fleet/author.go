package fleet

import "github.com/fleethub/fleethub/certs/manifest"

// ManifestStation returns which station made a manifest, by its signature, under a root
// that the fleet trusts now. It changes nothing; an error matches ErrRejected.
func (f *Fleet) ManifestStation(data []byte) (string, error) {
	m, _, err := manifest.Open(data, f.config.Roots(), f.config.Now())
	if err != nil {
		return "", rejected(err)
	}
	return m.Station, nil
}
