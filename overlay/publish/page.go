package publish

import (
	"bytes"
	_ "embed"
	"html/template"
	"net/http"
	"strconv"
)

// page is what this package itself shows to a browser.
type page struct {
	Title, Text    string
	Link, LinkText string
	Reload         bool // by itself, after a while

	Form  bool   // the login
	Site  string // whose
	To    string // where it leads
	Name  string // as it was typed
	Wrong string // why it was refused
}

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Parse(pageText))

// writePage answers with a page that nothing can be loaded into and nobody keeps.
func writePage(rw http.ResponseWriter, status int, p page) {
	var b bytes.Buffer
	if err := pageTemplate.Execute(&b, p); err != nil {
		http.Error(rw, "internal error", http.StatusInternalServerError)
		return
	}
	h := rw.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(b.Len()))
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "same-origin")
	h.Set("X-Content-Type-Options", "nosniff")
	if p.Reload {
		h.Set("Refresh", "10")
	}
	rw.WriteHeader(status)
	rw.Write(b.Bytes())
}
