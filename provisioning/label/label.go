// Package label makes the labels that go on boards: a QR code with the device's ID and
// its certificate's fingerprint, a Code 128 of the ID alone, and both for people to read.
//
// A label is drawn once, in black dots of 1/8 mm; PNG, SVG and ZPL are three ways to
// write the same dots down.
package label

import (
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/boombuler/barcode"
	"github.com/boombuler/barcode/code128"
	"github.com/boombuler/barcode/qr"

	"github.com/fleethub/fleethub/certs/identity"
)

// Measures in dots. The quiet zones are those of the standards: 4 modules around a QR
// code (ISO/IEC 18004 §5.3.8), 10 beside a Code 128 (ISO/IEC 15417 §4.4.2).
const (
	dotsPerMillimetre = 8 // 203 dpi
	qrModule          = 4
	qrQuiet           = 4 * qrModule
	barModule         = 2
	barQuiet          = 10 * barModule
	barHeight         = 80
	textScale         = 3
	lineGap           = 4 * textScale
	margin            = 8
)

// Label is one board's. It never changes.
type Label struct {
	id, content string
	dots        bitmap
}

// New draws the label of a device, whose certificate has that fingerprint
// (identity.Fingerprint).
func New(id, fingerprint string) (*Label, error) {
	if err := identity.ValidID(id); err != nil {
		return nil, fmt.Errorf("make a label: %w", err)
	}
	if sum, err := hex.DecodeString(fingerprint); err != nil || len(sum) != 32 || strings.ToLower(fingerprint) != fingerprint {
		return nil, fmt.Errorf("make the label of %s: %.80q is no fingerprint, which has 64 lower-case hex digits", id, fingerprint)
	}
	l := &Label{id: id, content: Content(id, fingerprint)}
	square, err := qr.Encode(l.content, qr.M, qr.Unicode)
	if err != nil {
		return nil, fmt.Errorf("make the QR code of %s: %w", id, err)
	}
	bars, err := code128.Encode(id)
	if err != nil {
		return nil, fmt.Errorf("make the Code 128 of %s: %w", id, err)
	}
	l.draw(square, bars, fingerprint)
	return l, nil
}

// Content returns what the QR code says: "ID sha256:FINGERPRINT". An ID has no spaces.
func Content(id, fingerprint string) string { return id + " sha256:" + fingerprint }

// ID returns whose label it is.
func (l *Label) ID() string { return l.id }

// draw puts the QR code at the upper left with the beginning of the fingerprint beside
// it, and the Code 128 with the ID below them.
func (l *Label) draw(square, bars barcode.Barcode, fingerprint string) {
	side := square.Bounds().Dx()*qrModule + 2*qrQuiet
	var lines []string
	for i := 0; i < 32; i += 8 {
		lines = append(lines, fingerprint[i:i+4]+" "+fingerprint[i+4:i+8])
	}
	beside := textWidth(lines[0])
	width := max(side+beside+2*margin, bars.Bounds().Dx()*barModule+2*barQuiet, textWidth(l.id)+2*margin)
	height := side + barHeight + glyphHeight*textScale + 3*margin
	l.dots = newBitmap(width, height)

	l.dots.code(square, qrQuiet, qrQuiet, qrModule, qrModule)
	for i, line := range lines {
		l.dots.text(line, side, qrQuiet+i*(glyphHeight*textScale+lineGap))
	}
	barWidth := bars.Bounds().Dx() * barModule
	l.dots.code(bars, (width-barWidth)/2, side, barModule, barHeight)
	l.dots.text(l.id, (width-textWidth(l.id))/2, side+barHeight+margin)
}
