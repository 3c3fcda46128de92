package label

import (
	"bufio"
	"fmt"
	"html"
	"image"
	"image/color"
	"image/png"
	"io"
)

// Format is how a label is written down.
type Format string

// The formats.
const (
	PNG Format = "png"
	SVG Format = "svg"
	ZPL Format = "zpl" // the language of Zebra's printers and many others', for a raw socket
)

// Valid reports whether f is one of the formats.
func (f Format) Valid() bool { return f == PNG || f == SVG || f == ZPL }

// ContentType returns the media type of the format.
func (f Format) ContentType() string {
	switch f {
	case PNG:
		return "image/png"
	case SVG:
		return "image/svg+xml"
	}
	return "text/plain; charset=us-ascii"
}

// Write writes the label in that format.
func (l *Label) Write(w io.Writer, f Format) error {
	switch f {
	case PNG:
		return l.writePNG(w)
	case SVG:
		return l.writeSVG(w)
	case ZPL:
		return l.writeZPL(w)
	}
	return fmt.Errorf("%.20q is no format of labels: there are png, svg and zpl", f)
}

// writePNG writes one pixel a dot.
func (l *Label) writePNG(w io.Writer) error {
	b := l.dots
	picture := image.NewPaletted(image.Rect(0, 0, b.width, b.height), color.Palette{color.White, color.Black})
	b.runs(func(x, y, length int) {
		for i := range length {
			picture.SetColorIndex(x+i, y, 1)
		}
	})
	return png.Encode(w, picture)
}

func (l *Label) writeSVG(w io.Writer) error {
	b, out := l.dots, bufio.NewWriter(w)
	fmt.Fprintf(out, `<svg xmlns="http://www.w3.org/2000/svg" width="%gmm" height="%gmm" viewBox="0 0 %d %d" shape-rendering="crispEdges">`,
		float64(b.width)/dotsPerMillimetre, float64(b.height)/dotsPerMillimetre, b.width, b.height)
	fmt.Fprintf(out, `<title>%s</title><rect width="%d" height="%d" fill="#fff"/><path d="`, html.EscapeString(l.id), b.width, b.height)
	b.runs(func(x, y, length int) { fmt.Fprintf(out, "M%d %dh%dv1h-%dz", x, y, length, length) })
	fmt.Fprint(out, "\"/></svg>\n")
	return out.Flush()
}

// writeZPL writes the dots as a graphic field (ZPL II, ^GF with hexadecimal data), so
// that what the printer can draw by itself doesn't matter.
func (l *Label) writeZPL(w io.Writer) error {
	b, out := l.dots, bufio.NewWriter(w)
	stride := (b.width + 7) / 8
	fmt.Fprintf(out, "^XA^PW%d^LL%d^FO0,0^GFA,%d,%d,%d,", stride*8, b.height, stride*b.height, stride*b.height, stride)
	rows := make([]byte, stride*b.height)
	b.runs(func(x, y, length int) {
		for i := x; i < x+length; i++ {
			rows[y*stride+i/8] |= 0x80 >> (i % 8)
		}
	})
	fmt.Fprintf(out, "%X^FS^XZ\n", rows)
	return out.Flush()
}
