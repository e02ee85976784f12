package publish

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	// loginPath and logoutPath are ours on every page with a login.
	loginPath  = "/.overlayd/login"
	logoutPath = "/.overlayd/logout"
	// LoginFor is how long a login counts: a working day with its evening.
	LoginFor = 12 * time.Hour
	// maxForm holds a name, a password and a code.
	maxForm = 4 << 10
	// maxCookie holds an id of 64 bytes, a time and a MAC.
	maxCookie = 256
)

// cookiePrefix begins the name of every login's cookie. Its first word makes
// browsers insist on TLS and on this very host.
const cookiePrefix = "__Host-overlayd-"

// cookieName is of one exposure: browsers do not tell ports apart.
func (w *website) cookieName() string { return cookiePrefix + w.p.e.ID }

// seal makes what the cookie of a user holds who logged in at a time.
func (e *Exposure) seal(user string, at time.Time) string {
	text := user + "." + strconv.FormatInt(at.UnixNano(), 10) // whole, to be held against when a password was changed
	return text + "." + e.mac(text)
}

// mac is in letters, as it is compared: base64 can be read from more than one
// writing of the same.
func (e *Exposure) mac(text string) string {
	m := hmac.New(sha256.New, e.Secret)
	m.Write([]byte("login " + e.ID + " " + text))
	return base64.RawURLEncoding.EncodeToString(m.Sum(nil))
}

// unseal returns whose a cookie is, and since when.
func (e *Exposure) unseal(s string, now time.Time) (user string, at time.Time, ok bool) {
	i := strings.LastIndexByte(s, '.')
	if len(s) > maxCookie || i < 0 || len(e.Secret) == 0 {
		return "", time.Time{}, false
	}
	text := s[:i]
	if !hmac.Equal([]byte(s[i+1:]), []byte(e.mac(text))) {
		return "", time.Time{}, false
	}
	user, since, found := strings.Cut(text, ".")
	n, err := strconv.ParseInt(since, 10, 64)
	at = time.Unix(0, n)
	if !found || err != nil || user == "" || now.Sub(at) >= LoginFor || at.After(now.Add(time.Minute)) {
		return "", time.Time{}, false
	}
	return user, at, true
}

// admit lets a request pass that belongs to a user, and answers it otherwise.
func (w *website) admit(rw http.ResponseWriter, r *http.Request) (*http.Request, bool) {
	switch r.URL.Path {
	case loginPath:
		w.login(rw, r)
		return r, false
	case logoutPath:
		w.setCookie(rw, "", -1)
		http.Redirect(rw, r, loginPath, http.StatusSeeOther)
		return r, false
	}
	if c, err := r.Cookie(w.cookieName()); err == nil {
		if id, at, ok := w.p.e.unseal(c.Value, w.p.s.o.Now()); ok {
			if name, ok := w.p.s.o.Holds(id, at); ok {
				return r.WithContext(context.WithValue(r.Context(), whoKey{}, who{id, name, at})), true
			}
		}
	}
	if (r.Method == http.MethodGet || r.Method == http.MethodHead) && r.Header.Get("Upgrade") == "" && wantsPage(r) {
		to := loginPath
		if at := r.URL.RequestURI(); at != "/" && isLocal(at) {
			to += "?to=" + url.QueryEscape(at)
		}
		http.Redirect(rw, r, to, http.StatusSeeOther)
		return r, false
	}
	writePage(rw, http.StatusUnauthorized, page{Title: "Log in first", Text: "This page is for people who have logged in.", Link: loginPath, LinkText: "Log in"})
	return r, false
}

// wantsPage reports whether a person looks at the answer.
func wantsPage(r *http.Request) bool {
	accept := r.Header.Get("Accept")
	return accept == "" || strings.Contains(accept, "text/html") || strings.Contains(accept, "*/*")
}

// isLocal reports whether a path leads nowhere but here.
func isLocal(s string) bool {
	return len(s) <= 2048 && strings.HasPrefix(s, "/") && !strings.HasPrefix(s, "//") &&
		!strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == '\\' || r == 0x7f }) && !strings.HasPrefix(s, "/.overlayd/")
}

func (w *website) setCookie(rw http.ResponseWriter, value string, seconds int) {
	http.SetCookie(rw, &http.Cookie{
		Name: w.cookieName(), Value: value, Path: "/", MaxAge: seconds, Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	})
}

// hideCookies takes the cookies of logins out of what the target gets: also those
// of other exposures, which browsers send to every port of a host.
func hideCookies(r *http.Request) {
	all := r.Cookies()
	kept := all[:0]
	for _, c := range all {
		if !strings.HasPrefix(c.Name, cookiePrefix) {
			kept = append(kept, c)
		}
	}
	if len(kept) == len(all) {
		return
	}
	r.Header.Del("Cookie")
	for _, c := range kept {
		r.AddCookie(c)
	}
}

// crossOrigin refuses forms that another site sends.
var crossOrigin = http.NewCrossOriginProtection()

// sentence makes an error's text one for a page.
func sentence(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:] + "."
}

// login shows the form, and takes it.
func (w *website) login(rw http.ResponseWriter, r *http.Request) {
	to := r.URL.Query().Get("to")
	if !isLocal(to) {
		to = "/"
	}
	form := page{Title: "Log in", Form: true, To: to, Site: hostOf(r.Host)}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		writePage(rw, http.StatusOK, form)
		return
	case http.MethodPost:
	default:
		rw.Header().Set("Allow", "GET, HEAD, POST")
		writePage(rw, http.StatusMethodNotAllowed, page{Title: "Not like that", Text: "This page takes a form."})
		return
	}
	r.Body = http.MaxBytesReader(rw, r.Body, maxForm)
	if err := crossOrigin.Check(r); err != nil || r.ParseForm() != nil {
		writePage(rw, http.StatusForbidden, page{Title: "Not like that", Text: "The form did not come from this page.", Link: loginPath, LinkText: "Log in"})
		return
	}
	name, g := strings.TrimSpace(r.PostForm.Get("name")), w.guest(r)
	if at := r.PostForm.Get("to"); isLocal(at) {
		form.To = at
	}
	id, err := w.p.s.o.Login(r.Context(), g.Client.Addr(), name, r.PostForm.Get("password"), r.PostForm.Get("code"))
	if err != nil {
		form.Name, form.Wrong = name, sentence(err.Error())
		if len(name) > 64 {
			form.Name = ""
		}
		if errors.Is(err, ErrWait) { // nothing was tried, and any number can come: they would push all else out of the record
			writePage(rw, http.StatusTooManyRequests, form)
			return
		}
		w.p.s.o.Log.Info("login refused", "exposure", w.p.e.ID, "addr", g.Client, "err", err)
		w.p.s.o.Refused(form.Name, g, err.Error())
		writePage(rw, http.StatusForbidden, form)
		return
	}
	w.p.s.o.Log.Info("login", "exposure", w.p.e.ID, "user", name, "addr", g.Client)
	w.setCookie(rw, w.p.e.seal(id, w.p.s.o.Now()), int(LoginFor/time.Second))
	rw.Header().Set("Cache-Control", "no-store")
	http.Redirect(rw, r, form.To, http.StatusSeeOther)
}
