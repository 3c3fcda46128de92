package label

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"image/png"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var fingerprint = strings.Repeat("0123456789abcdef", 4)

var ids = []string{"a", "7", "pi-00001", "12345678", "123456789", "Board_7.rev-B", "A1b2C3", "x" + strings.Repeat("Y9-_.", 12) + "end"}

func labelOf(t testing.TB, id string) *Label {
	t.Helper()
	l, err := New(id, fingerprint)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// scan has zbar, which is none of ours, read a picture's codes.
func scan(t *testing.T, picture string) string {
	t.Helper()
	out, err := exec.Command("zbarimg", "--quiet", picture).CombinedOutput()
	if err != nil {
		t.Fatalf("zbarimg: %v: %s (Debian package zbar-tools)", err, out)
	}
	return string(out)
}

func (b bitmap) pbm() []byte {
	out := fmt.Appendf(nil, "P1\n%d %d\n", b.width, b.height)
	for i, black := range b.black {
		dot := byte('0')
		if black {
			dot = '1'
		}
		if out = append(out, dot); i%64 == 63 {
			out = append(out, '\n')
		}
	}
	return out
}

func TestBothCodesOfEveryLabelAreReadByAForeignScanner(t *testing.T) {
	for _, id := range ids {
		file := filepath.Join(t.TempDir(), "label.png")
		if err := (Target{Path: file, Format: PNG}).Send(t.Context(), labelOf(t, id)); err != nil {
			t.Fatal(err)
		}
		out := scan(t, file)
		for _, want := range []string{"CODE-128:" + id + "\n", "QR-Code:" + id + " sha256:" + fingerprint + "\n"} {
			if !strings.Contains(out, want) {
				t.Errorf("%s: %q is missing from %q", id, want, out)
			}
		}
	}
}

func TestEveryFormatHasTheSameDots(t *testing.T) {
	for _, id := range ids {
		l := labelOf(t, id)
		for format, read := range map[Format]func(*testing.T, []byte) bitmap{PNG: readPNG, SVG: readSVG, ZPL: readZPL} {
			var out bytes.Buffer
			if err := l.Write(&out, format); err != nil {
				t.Fatal(err)
			}
			got := read(t, out.Bytes())
			for y := range l.dots.height {
				for x := range l.dots.width {
					if got.at(x, y) != l.dots.at(x, y) {
						t.Fatalf("%s as %s: dot %d,%d differs", id, format, x, y)
					}
				}
			}
		}
	}
}

func readPNG(t *testing.T, data []byte) bitmap {
	picture, err := png.Decode(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	b := newBitmap(picture.Bounds().Dx(), picture.Bounds().Dy())
	for i := range b.black {
		r, _, _, _ := picture.At(i%b.width, i/b.width).RGBA()
		b.black[i] = r == 0
	}
	return b
}

func readSVG(t *testing.T, data []byte) bitmap {
	var doc struct {
		ViewBox string `xml:"viewBox,attr"`
		Path    struct {
			D string `xml:"d,attr"`
		} `xml:"path"`
	}
	if err := xml.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	var width, height int
	if _, err := fmt.Sscanf(doc.ViewBox, "0 0 %d %d", &width, &height); err != nil {
		t.Fatal(err)
	}
	b := newBitmap(width, height)
	for run := range strings.SplitSeq(strings.TrimPrefix(doc.Path.D, "M"), "M") {
		var x, y, length, back int
		if _, err := fmt.Sscanf(run, "%d %dh%dv1h-%dz", &x, &y, &length, &back); err != nil || back != length {
			t.Fatalf("%q: %v", run, err)
		}
		b.fill(x, y, length, 1)
	}
	return b
}

func readZPL(t *testing.T, data []byte) bitmap {
	var width, height, total, again, stride int
	text := strings.TrimSuffix(string(data), "^FS^XZ\n")
	if _, err := fmt.Sscanf(text, "^XA^PW%d^LL%d^FO0,0^GFA,%d,%d,%d,", &width, &height, &total, &again, &stride); err != nil {
		t.Fatal(err)
	}
	rows, err := hex.DecodeString(text[strings.LastIndex(text, ",")+1:])
	if err != nil || len(rows) != total || again != total || width != stride*8 || total != stride*height {
		t.Fatalf("%d bytes of %d, %d dots wide, stride %d: %v", len(rows), total, width, stride, err)
	}
	b := newBitmap(width, height)
	for i := range b.black {
		b.black[i] = rows[i/8]&(0x80>>(i%8)) != 0
	}
	return b
}

func TestFontHasEveryCharacterOfAnID(t *testing.T) {
	seen := make(map[glyph]byte)
	for _, c := range []byte("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-:") {
		g, ok := glyphs()[c]
		for _, row := range g {
			ok = ok && len(row) == glyphWidth
		}
		if other, twice := seen[g]; !ok || twice {
			t.Errorf("%q is not drawn, or as %q is", c, other)
		}
		seen[g] = c
	}
}

func TestWhatIsNoIDOrFingerprintGetsNoLabel(t *testing.T) {
	for _, id := range []string{"", "a b", "../a", `"><script>`, "^XZ", "-a", strings.Repeat("a", 65), "ä", "a\n"} {
		if _, err := New(id, fingerprint); err == nil {
			t.Errorf("%q", id)
		}
	}
	for _, sum := range []string{"", fingerprint[1:], strings.ToUpper(fingerprint), fingerprint + "00", strings.Repeat("zz", 32)} {
		if _, err := New("a", sum); err == nil {
			t.Errorf("%q", sum)
		}
	}
}

func TestTargetIsReadFromItsText(t *testing.T) {
	for text, want := range map[string]Target{
		"tcp://10.0.0.9":       {Address: "10.0.0.9:9100", Format: ZPL},
		"tcp://10.0.0.9:9101":  {Address: "10.0.0.9:9101", Format: ZPL},
		"tcp://[fe80::1]":      {Address: "[fe80::1]:9100", Format: ZPL},
		"tcp://[fe80::1]:9101": {Address: "[fe80::1]:9101", Format: ZPL},
		"labels":               {Path: "labels", Format: PNG},
		"a.SVG":                {Path: "a.SVG", Format: SVG},
	} {
		if got, err := ParseTarget(text, ""); err != nil || got != want {
			t.Errorf("%s: %+v %v", text, got, err)
		}
	}
	for _, text := range []string{"", "tcp://", "tcp://:9100", "tcp://a:"} {
		if got, err := ParseTarget(text, ""); err == nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
	if _, err := ParseTarget("a", "pdf"); err == nil {
		t.Error("a format that isn't there")
	}
}

// A printer is a socket that takes bytes.
func TestQueuePrintsOverARawSocketAndReportsWhatItCannot(t *testing.T) {
	printer, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	printed := make(chan []byte, 1)
	go func() {
		conn, err := printer.Accept()
		if err != nil {
			printed <- nil
			return
		}
		data, _ := io.ReadAll(conn)
		conn.Close()
		printed <- data
	}()
	target, err := ParseTarget("tcp://"+printer.Addr().String(), "")
	if err != nil {
		t.Fatal(err)
	}
	type outcome struct {
		id  string
		err error
	}
	outcomes := make(chan outcome, 2)
	q := NewQueue(target, func(id string) (*Label, error) { return New(id, fingerprint) }, func(id string, err error) { outcomes <- outcome{id, err} })
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- q.Run(ctx) }()
	if err := q.Add("pi-1"); err != nil {
		t.Fatal(err)
	}
	data := <-printed
	file := filepath.Join(t.TempDir(), "printed.pbm")
	if err := os.WriteFile(file, readZPL(t, data).pbm(), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := scan(t, file); !strings.Contains(out, "CODE-128:pi-1\n") || !strings.Contains(out, Content("pi-1", fingerprint)) {
		t.Errorf("a scanner reads %q from the paper", out)
	}
	if o := <-outcomes; o.id != "pi-1" || o.err != nil {
		t.Errorf("%+v", o)
	}
	printer.Close()
	if err := q.Add("pi-2"); err != nil {
		t.Fatal(err)
	}
	if o := <-outcomes; o.id != "pi-2" || o.err == nil {
		t.Errorf("printed by a printer that is off: %+v", o)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for range queueLength {
		if err := q.Add("pi-3"); err != nil {
			t.Fatal(err)
		}
	}
	if err := q.Add("pi-3"); err == nil {
		t.Error("the queue has no bound")
	}
}

func TestFolderGetsAFileOfEachLabel(t *testing.T) {
	dir := t.TempDir()
	for _, id := range []string{"a", "b"} {
		if err := (Target{Path: dir, Format: SVG}).Send(t.Context(), labelOf(t, id)); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(dir, id+".svg")); err != nil {
			t.Error(err)
		}
	}
}
