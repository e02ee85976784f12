package publish

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
)

// An authority is asked nothing about a name that is published no more, and is the
// same when it is again: its manager's timers go on.
func TestAuthorityRests(t *testing.T) {
	var asked atomic.Int32
	directory := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer directory.Close()
	p := newPublisher(t)
	const host = "nas.example.org"
	e := Exposure{Protocol: HTTP, Target: "nas:80", Host: host, ACME: &ACME{Directory: directory.URL}}
	ask := func(au *authority) error {
		res, err := au.manager.Client.HTTPClient.Get(directory.URL)
		if err == nil {
			res.Body.Close()
		}
		return err
	}

	p.expose(e)
	first := p.server.certs.hosts[host]
	if err := ask(first); err != nil || asked.Load() != 1 || p.server.certs.challenged(host) == nil {
		t.Fatalf("a published name: %v, asked %d times", err, asked.Load())
	}
	p.server.Set(nil)
	if err := ask(first); err == nil || asked.Load() != 1 || p.server.certs.challenged(host) != nil {
		t.Errorf("published no more: %v, asked %d times", err, asked.Load())
	}
	p.expose(e)
	if again := p.server.certs.hosts[host]; again != first || ask(again) != nil || asked.Load() != 2 {
		t.Errorf("published again: another one %t, asked %d times", again != first, asked.Load())
	}
	p.server.Set(nil)
	e.ACME = &ACME{Directory: directory.URL + "/other"}
	p.expose(e)
	if err := ask(first); err == nil || asked.Load() != 2 {
		t.Errorf("replaced by another authority: %v, asked %d times", err, asked.Load())
	}
}
