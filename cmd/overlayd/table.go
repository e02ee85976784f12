package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"
	"unicode/utf8"
)

// table is text in columns. Its first row is the head.
type table [][]string

func (t *table) row(cells ...string) { *t = append(*t, cells) }

// write prints the columns two spaces apart, without spaces at the ends.
func (t table) write(w io.Writer) {
	var widths []int
	for _, r := range t {
		for i, c := range r {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	for _, r := range t {
		var b strings.Builder
		for i, c := range r {
			b.WriteString(c)
			b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c)+2))
		}
		fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
}

// printJSON prints one object and a newline.
func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// unknown stands where a table has no value.
const unknown = "-"

func orUnknown(s string) string {
	if s == "" {
		return unknown
	}
	return s
}

func addrsText(l []netip.Addr) string { return orUnknown(joinAny(l, ",")) }

// bytesText writes a size as people do: 1000 bytes are 1 kB.
func bytesText(n uint64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	f := float64(n)
	for _, unit := range []string{"kB", "MB", "GB", "TB"} {
		if f /= 1000; f < 999.5 {
			if f < 9.95 {
				return fmt.Sprintf("%.1f %s", f, unit)
			}
			return fmt.Sprintf("%.0f %s", f, unit)
		}
	}
	return fmt.Sprintf("%.0f TB", f)
}

// msText writes a round trip; nil is not known.
func msText(ms *float64) string {
	switch {
	case ms == nil:
		return unknown
	case *ms < 9.95:
		return fmt.Sprintf("%.1f ms", *ms)
	}
	return fmt.Sprintf("%.0f ms", *ms)
}

// roughly writes a span with one unit, the largest that fits.
func roughly(d time.Duration) string {
	switch {
	case d < time.Second:
		return "0 s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", d/time.Second)
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", d/time.Hour)
	}
	return fmt.Sprintf("%d days", d/(24*time.Hour))
}

// spanText writes a span as a flag takes it: 24h, 90m, 7d.
func spanText(d time.Duration) string {
	if d >= 48*time.Hour && d%(24*time.Hour) == 0 {
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	}
	s := d.String() // 24h0m0s, 1h30m0s, 45s
	if short, ok := strings.CutSuffix(s, "m0s"); ok {
		s = strings.TrimSuffix(short+"m", "h0m")
		if s != short+"m" {
			s += "h"
		}
	}
	return s
}
