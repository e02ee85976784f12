package publish

import (
	"encoding/xml"
	"strings"
	"testing"
)

// TestPage: whatever is said stays text, in a page whose elements close.
func TestPage(t *testing.T) {
	const evil = `"'><script>x</script>&`
	all := page{Title: evil, Text: evil, Link: evil, LinkText: evil, Site: evil, To: evil, Name: evil, Wrong: evil}
	form := all
	form.Form = true
	for _, p := range []page{all, form, {Title: "t", Text: "t"}, {Title: "t", Form: true}} {
		text := p.html()
		if strings.Contains(text, "<script") {
			t.Errorf("a script in\n%s", text)
		}
		_, body, _ := strings.Cut(text, "<main>")
		d := xml.NewDecoder(strings.NewReader("<main>" + body))
		d.Strict, d.AutoClose, d.Entity = false, xml.HTMLAutoClose, xml.HTMLEntity
		var inputs, focused int
		for {
			token, err := d.Token()
			if err != nil {
				if !strings.Contains(err.Error(), "</html>") { // whose beginning is before main
					t.Errorf("%v in\n%s", err, body)
				}
				break
			}
			if e, ok := token.(xml.StartElement); ok && e.Name.Local == "input" {
				inputs++
				for _, a := range e.Attr {
					if a.Name.Local == "autofocus" {
						focused++
					}
					if p.Name != "" && a.Name.Local == "value" && a.Value != evil {
						t.Errorf("value %q, want %q", a.Value, evil)
					}
				}
			}
		}
		if want := map[bool]int{true: 4}[p.Form]; inputs != want || focused != min(want, 1) {
			t.Errorf("%d inputs, %d of them to begin with; want %d, %d", inputs, focused, want, min(want, 1))
		}
	}
}
