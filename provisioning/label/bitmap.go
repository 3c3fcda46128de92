package label

import (
	_ "embed"
	"image/color"
	"strings"
	"sync"

	"github.com/boombuler/barcode"
)

// bitmap is a picture of black dots on white.
type bitmap struct {
	width, height int
	black         []bool // row by row
}

func newBitmap(width, height int) bitmap {
	return bitmap{width: width, height: height, black: make([]bool, width*height)}
}

func (b bitmap) at(x, y int) bool { return b.black[y*b.width+x] }

func (b bitmap) fill(x, y, width, height int) {
	for row := y; row < y+height; row++ {
		for column := x; column < x+width; column++ {
			b.black[row*b.width+column] = true
		}
	}
}

// code draws a code with its upper left corner at x, y, each module of that size.
func (b bitmap) code(c barcode.Barcode, x, y, width, height int) {
	bounds := c.Bounds()
	for row := bounds.Min.Y; row < bounds.Max.Y; row++ {
		for column := bounds.Min.X; column < bounds.Max.X; column++ {
			if c.At(column, row) == color.Black {
				b.fill(x+column*width, y+row*height, width, height)
			}
		}
	}
}

// runs calls visit for every run of black dots, row by row.
func (b bitmap) runs(visit func(x, y, length int)) {
	for y := range b.height {
		for x := 0; x < b.width; x++ {
			if !b.at(x, y) {
				continue
			}
			start := x
			for x < b.width && b.at(x, y) {
				x++
			}
			visit(start, y, x-start)
		}
	}
}

// The font: of every character an ID may have, five dots by seven.
const (
	glyphWidth  = 5
	glyphHeight = 7
)

type glyph [glyphHeight]string

//go:embed glyphs.txt
var glyphText string

// glyphs reads the font, once. Each band of the file is a line of names above seven
// lines of dots; columns are parted by a space.
var glyphs = sync.OnceValue(func() map[byte]glyph {
	font := make(map[byte]glyph)
	for band := range strings.SplitSeq(strings.TrimSpace(glyphText), "\n\n") {
		lines := strings.Split(band, "\n")
		for i, name := range strings.Fields(lines[0]) {
			var g glyph
			for row := range g {
				g[row] = strings.Fields(lines[row+1])[i]
			}
			font[name[0]] = g
		}
	}
	return font
})

func textWidth(s string) int { return len(s) * (glyphWidth + 1) * textScale }

// text draws s, of the font's characters; another one, such as a space, stays white.
func (b bitmap) text(s string, x, y int) {
	font := glyphs()
	for i := range len(s) {
		for row, dots := range font[s[i]] {
			for column := range len(dots) {
				if dots[column] == '#' {
					b.fill(x+(i*(glyphWidth+1)+column)*textScale, y+row*textScale, textScale, textScale)
				}
			}
		}
	}
}
