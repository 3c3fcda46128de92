package pemfile

import (
	"io/fs"
	"testing"
)

func TestModeIsWiderIfOthersReadOrWriteMore(t *testing.T) {
	for _, tt := range []struct {
		shown, wanted fs.FileMode
		want          bool
	}{
		{0o600, 0o600, false},
		{0o700, 0o600, false}, // a stick mounted with umask=077
		{0o755, 0o600, true},  // and with umask=022
		{0o755, 0o644, false},
		{0o600, 0o644, false},
		{0o777, 0o644, true},
		{0o640, 0o600, true},
	} {
		if got := wider(tt.shown, tt.wanted); got != tt.want {
			t.Errorf("%04o for %04o: %v", tt.shown, tt.wanted, got)
		}
	}
}
