package publish

import (
	_ "embed"
	"html"
	"net/http"
	"strconv"
	"strings"
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

// pageHead is all of a page before its text.
//
//go:embed page.html
var pageHead string

// html is the page. html/template would do it too, and adds 6 MB to the program:
// what finds methods by name has the linker keep every method of every type.
func (p page) html() string {
	var b strings.Builder
	say := func(parts ...string) { // every second one is shown as it is, whatever is in it
		for i, s := range parts {
			if i%2 == 1 {
				s = html.EscapeString(s)
			}
			b.WriteString(s)
		}
	}
	say(pageHead+"<title>", p.Title, "</title>\n<main>\n<h1>", p.Title, "</h1>\n")
	switch {
	case p.Form:
		p.form(say)
	case p.Link != "":
		say("<p>", p.Text, "</p>\n<p><a href=\"", p.Link, "\">", p.LinkText, "</a></p>\n")
	default:
		say("<p>", p.Text, "</p>\n")
	}
	say("</main>\n</html>\n")
	return b.String()
}

// form says what a login takes. The cursor stands where the next word is to be typed.
func (p page) form(say func(...string)) {
	if p.Site != "" {
		say("<p>to ", p.Site, "</p>\n")
	}
	if p.Wrong != "" {
		say("<p class=\"wrong\" role=\"alert\">", p.Wrong, "</p>\n")
	}
	first, second := " autofocus", ""
	if p.Name != "" {
		first, second = second, first
	}
	say("<form method=\"post\" action=\""+loginPath+"\">\n<input type=\"hidden\" name=\"to\" value=\"", p.To, "\">\n"+
		"<label>Name<input name=\"name\" value=\"", p.Name, "\" autocomplete=\"username\" autocapitalize=\"none\" spellcheck=\"false\" maxlength=\"64\" required"+first+"></label>\n"+
		"<label>Password<input name=\"password\" type=\"password\" autocomplete=\"current-password\" maxlength=\"512\" required"+second+"></label>\n"+
		"<label>Code of the authenticator<input class=\"code\" name=\"code\" inputmode=\"numeric\" autocomplete=\"one-time-code\" pattern=\"[0-9 ]{6,7}\" maxlength=\"7\" title=\"six digits\" required></label>\n"+
		"<button>Log in</button>\n</form>\n")
}

// writePage answers with a page that nothing can be loaded into and nobody keeps.
func writePage(rw http.ResponseWriter, status int, p page) {
	body := p.html()
	h := rw.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "same-origin")
	h.Set("X-Content-Type-Options", "nosniff")
	if p.Reload {
		h.Set("Refresh", "10")
	}
	rw.WriteHeader(status)
	_, _ = rw.Write([]byte(body))
}
