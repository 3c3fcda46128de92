package protocol

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestRenewalNoticeIsRead(t *testing.T) {
	sum := strings.Repeat("0a", 32)
	for payload, ok := range map[string]bool{
		`{"certificate":"` + sum + `"}`:                      true,
		`{"certificate":"` + sum + `","until":"2027-01-01"}`: true, // of a later hub
		`{"certificate":"` + strings.ToUpper(sum) + `"}`:     false,
		`{"certificate":"` + sum[2:] + `"}`:                  false,
		`{"certificate":"` + strings.Repeat("zz", 32) + `"}`: false,
		`{"certificate":"` + sum + `"} {}`:                   false,
		`{"certificate":7}`:                                  false,
		`{}`:                                                 false,
		``:                                                   false,
		`{"certificate":"` + sum + `"}` + strings.Repeat(" ", 256): false,
	} {
		n, err := ParseRenewalNotice([]byte(payload))
		if (err == nil) != ok || ok && n.Certificate != sum {
			t.Errorf("%.80q: %+v, %v", payload, n, err)
		}
	}
}

func FuzzRenewalNotice(f *testing.F) {
	f.Add([]byte(`{"certificate":"` + strings.Repeat("0a", 32) + `"}`))
	f.Add([]byte(`{"certificate":null}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		n, err := ParseRenewalNotice(payload)
		if err != nil {
			return
		}
		again, err := json.Marshal(n)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := ParseRenewalNotice(again); err != nil || back != n {
			t.Errorf("%q becomes %q, which is read as %+v, %v", payload, again, back, err)
		}
	})
}
