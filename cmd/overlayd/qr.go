package main

import (
	"fmt"
	"strings"

	"github.com/boombuler/barcode"
	"github.com/boombuler/barcode/qr"
)

// drawQR shows a QR code to a person, beside what goes to standard output; where
// nobody looks it draws none.
func (p *program) drawQR(content string) error {
	if !p.terminal(p.stdout) {
		return nil
	}
	code, err := qrText(content)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(p.stderr, "\n%s\n", code)
	return err
}

// qrText draws a QR code in half blocks, dark on light whatever the terminal's
// colours, with the quiet zone of four modules that readers want.
func qrText(content string) (string, error) {
	code, err := qr.Encode(content, qr.L, qr.Auto)
	if err != nil {
		return "", fmt.Errorf("draw QR code: %w", err)
	}
	const quiet = 4
	size := code.Bounds().Dx()
	var b strings.Builder
	for y := -quiet; y < size+quiet; y += 2 {
		b.WriteString("\x1b[30;107m")
		for x := -quiet; x < size+quiet; x++ {
			b.WriteRune([...]rune{' ', '▀', '▄', '█'}[darkAt(code, x, y)+2*darkAt(code, x, y+1)])
		}
		b.WriteString("\x1b[0m\n")
	}
	return b.String(), nil
}

// darkAt is 1 where a code is dark.
func darkAt(code barcode.Barcode, x, y int) int {
	size := code.Bounds().Dx()
	if x < 0 || y < 0 || x >= size || y >= size {
		return 0
	}
	if r, _, _, _ := code.At(x, y).RGBA(); r == 0 {
		return 1
	}
	return 0
}
