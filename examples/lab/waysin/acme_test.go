//go:build linux

package waysin_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"overlayd/examples/lab"
	"overlayd/examples/lab/labtest"
)

// authority is where pebble, a certificate authority for tests, runs.
const authority = "203.0.113.1"

// startPebble runs it in the middle of the internet. It finds the VPS by a name,
// and asks it at the ports of the real world. It returns the certificate that its
// own is checked with.
func startPebble(ctx context.Context, t *testing.T, s *site, name string) (ca string) {
	t.Helper()
	pebble, err := exec.LookPath("pebble")
	if err != nil {
		t.Fatalf("find pebble: %v\nhint: apt-get install pebble", err)
	}
	file := func(n string) string { return filepath.Join(s.Dir, "pebble-"+n) }
	write := func(n string, b []byte) string {
		if err := os.WriteFile(file(n), b, 0o600); err != nil {
			t.Fatal(err)
		}
		return file(n)
	}
	k := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour), IPAddresses: []net.IP{net.ParseIP(authority)}}
	der := must[[]byte](t)(x509.CreateCertificate(rand.Reader, template, template, k.Public(), k))
	ca = write("cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	key := write("key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must[[]byte](t)(x509.MarshalPKCS8PrivateKey(k))}))
	config := write("config.json", must[[]byte](t)(json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": authority + ":14000", "managementListenAddress": authority + ":15000",
		"certificate": ca, "privateKey": key, "httpPort": 80, "tlsPort": 443,
	}})))
	hosts := write("hosts", []byte(lab.VPSAddr+" "+name+"\n"))
	// Programs in a namespace see mounts of their own: the real file stays.
	p := must[*lab.Process](t)(s.Internet.Start("env", "PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=0",
		"sh", "-c", `mount --bind "$2" /etc/hosts && exec "$0" -config "$1"`, pebble, config, hosts))
	err = lab.Until(ctx, func(ctx context.Context) error {
		if !p.Running() {
			t.Fatalf("pebble ended:\n%s", p.Tail())
		}
		_, err := s.fetch(ctx, "https://"+authority+":14000/dir")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// A published page gets a certificate from an authority that asks the relay's own
// port 443 for the proof, and keeps it over a restart without the authority.
func TestExposeACME(t *testing.T) {
	if _, err := exec.LookPath("pebble"); err != nil && os.Getenv("CI") != "true" {
		t.Skip("SKIPPED: needs pebble; apt-get install pebble")
	}
	const name = "nas.example.org"
	ctx, s := newSite(t, lab.Options{})
	serveLAN(t, s.Host)
	ca := startPebble(ctx, t, s, name)
	must[string](t)(s.VPS.Overlayd(ctx, "expose", "nas:80", "--on", ":8443", "--proto", "http", "--host", name,
		"--tls", "acme", "--acme-directory", "https://"+authority+":14000/dir", "--acme-ca", ca))
	root := filepath.Join(s.Dir, "pebble-root.pem")
	labtest.Run(ctx, t, s.Internet, "curl", "-sSk", "-o", root, "https://"+authority+":15000/roots/0")
	page := func(ctx context.Context) error {
		out, err := s.Internet.Run(ctx, "curl", "-sS", "-m", "30", "--cacert", root, "--resolve", name+":8443:"+lab.VPSAddr, "https://"+name+":8443/")
		if err == nil && !strings.Contains(out, "A page of the LAN") {
			err = errors.New(out)
		}
		return err
	}
	began := time.Now()
	if err := lab.Until(ctx, page); err != nil {
		out, _ := s.VPS.Overlayd(ctx, "expose", "list")
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("a page with a certificate after %v", time.Since(began).Round(time.Millisecond))
	if out, err := s.fetch(ctx, "--resolve", "other.example.org:8443:"+lab.VPSAddr, "https://other.example.org:8443/"); err == nil {
		t.Errorf("under another name: %s", out)
	}
	s.relay.Kill()
	s.relay = s.serve(ctx, t, s.VPS, "relay", "--public", lab.VPSAddr)
	within(ctx, t, "with the relay back, the page", page)
}
