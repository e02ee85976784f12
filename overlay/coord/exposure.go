package coord

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// exposureRecord is a port of this machine that leads into the network.
type exposureRecord struct {
	ID       string         `json:"id"`
	Target   string         `json:"target"` // host:port
	Listen   netip.AddrPort `json:"listen"` // an unspecified address is every one
	Protocol string         `json:"protocol"`
	Allow    []netip.Prefix `json:"allow,omitempty"`
	Host     string         `json:"host,omitempty"`
	TLS      string         `json:"tls,omitempty"`
	ACME     *ACME          `json:"acme,omitempty"`
	Login    bool           `json:"login,omitempty"`
	Proxy    bool           `json:"proxy_protocol,omitempty"`
	User     string         `json:"user,omitempty"` // the id of whose connections these are; empty: the relay's own
	By       string         `json:"by"`
	Created  time.Time      `json:"created"`
	Until    time.Time      `json:"until,omitzero"`

	// Secrets: they stay in the store and in this process.
	Certificate []byte `json:"certificate,omitempty"` // in PEM
	Key         []byte `json:"key,omitempty"`         // likewise
	Secret      []byte `json:"secret"`                // that logins are remembered with
}

func putExposure(e exposureRecord) Record { return put(keyExposure+e.ID, e) }

// The protocols of an exposure.
const (
	ExposeTCP  = "tcp"
	ExposeUDP  = "udp"
	ExposeHTTP = "http"
)

// Where the certificate of an exposure comes from.
const (
	TLSNone  = ""
	TLSSelf  = "self"  // made here, signed by itself
	TLSACME  = "acme"  // from a certificate authority that asks for a proof
	TLSGiven = "given" // by the operator
)

// ACME says which certificate authority is asked.
type ACME struct {
	Directory string `json:"directory,omitempty"` // its URL; empty: Let's Encrypt's
	CA        []byte `json:"ca,omitempty"`        // certificates, in PEM, that the directory's own is checked with; none: the system's
}

// Exposure is a published port: a port of the coordinator's machine that leads
// to one of the network.
type Exposure struct {
	ID       string
	Target   string // host:port
	Listen   netip.AddrPort
	Protocol string // ExposeTCP, ExposeUDP, ExposeHTTP
	Allow    []netip.Prefix
	Host     string // the only name that is answered; empty: any
	TLS      string
	ACME     ACME
	Login    bool
	Proxy    bool // PROXY protocol
	User     string
	By       string
	Created  time.Time
	Until    time.Time // zero: until it is removed

	State       string // ExposureListening and so on
	Problem     string
	Connections int

	Fingerprint string // SHA-256 of the certificate, in hexadecimal; empty: there is none, or by ACME
}

// The states of an exposure.
const (
	ExposureListening = "listening"
	ExposureFailed    = "failed"    // its port cannot be had; it is tried again
	ExposureSuspended = "suspended" // whose it is may do nothing
)

// Publisher runs the exposures.
type Publisher interface {
	// Try says why an exposure could not be run, before it is kept.
	Try(OpenExposure) error
	// State says how one does, which there is.
	State(id string) (state, problem string, connections int)
}

// OpenExposure is what is needed to run one.
type OpenExposure struct {
	Exposure
	UserID      string // of User
	Suspended   bool
	Certificate []byte
	Key         []byte
	Secret      []byte
}

const (
	maxExposures = 256      // each is a listener with buffers of its own
	maxAllowed   = 256      // prefixes of one
	maxPEM       = 64 << 10 // of a certificate with its chain
)

// checkTarget refuses what cannot be a target, and returns it as it is kept.
func checkTarget(s string) (string, error) {
	const hint = "write it as 192.168.1.10:80 or nas:80"
	host, port, err := net.SplitHostPort(strings.TrimSpace(s))
	n, perr := strconv.ParseUint(port, 10, 16)
	if err != nil || perr != nil || n == 0 || host == "" || len(host) > 253 {
		return "", problem(KindInvalid, hint, "%.80q is not HOST:PORT", s)
	}
	if a, err := netip.ParseAddr(host); err == nil {
		if a.Zone() != "" || reserved(netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen())) != "" {
			return "", problem(KindInvalid, "name a machine of the network", "%s is no address of the network", host)
		}
		host = a.Unmap().String()
	} else if strings.Trim(strings.ToLower(host), "abcdefghijklmnopqrstuvwxyz0123456789.-_") != "" {
		return "", problem(KindInvalid, hint, "%.80q is not a name", host)
	}
	return net.JoinHostPort(host, strconv.FormatUint(n, 10)), nil
}

// check refuses what cannot be run.
func (e *exposureRecord) check() error {
	var err error
	if e.Target, err = checkTarget(e.Target); err != nil {
		return err
	}
	if e.Listen.Port() == 0 {
		return problem(KindInvalid, "write it as --on :8080 or --on 203.0.113.10:8080", "there is no port to listen on")
	}
	for _, p := range e.Allow {
		if !p.IsValid() || p != p.Masked() {
			return problem(KindInvalid, "write "+p.Masked().String(), "%s has host bits set", p)
		}
	}
	switch {
	case len(e.Allow) > maxAllowed:
		return problem(KindInvalid, "allow larger prefixes", "%d prefixes are allowed: the most is %d", len(e.Allow), maxAllowed)
	case e.Protocol != ExposeTCP && e.Protocol != ExposeUDP && e.Protocol != ExposeHTTP:
		return problem(KindInvalid, "one of tcp, udp, http", "%.40q is not a protocol that is published", e.Protocol)
	case e.Protocol != ExposeTCP && e.Proxy:
		return problem(KindInvalid, "give it with --proto tcp", "PROXY protocol is for tcp; http has X-Forwarded-For")
	case e.Protocol != ExposeHTTP && (e.Host != "" || e.TLS != TLSNone || e.Login):
		return problem(KindInvalid, "give it with --proto http", "a host name, TLS and a login are for http")
	case e.Host != "" && !isHostName(e.Host):
		return problem(KindInvalid, "write it as nas.example.org", "%.80q is not a host name", e.Host)
	case e.Login && e.TLS == TLSNone:
		return problem(KindInvalid, "add --tls acme, --tls self, or --tls-cert and --tls-key", "a login needs TLS, or everybody on the way reads the password")
	}
	return e.checkTLS()
}

func (e *exposureRecord) checkTLS() error {
	switch e.TLS {
	case TLSNone, TLSSelf:
		return nil
	case TLSGiven:
		if len(e.Certificate) > maxPEM || len(e.Key) > maxPEM {
			return problem(KindInvalid, "give the certificate with its chain, and nothing else", "the certificate is longer than %d bytes", maxPEM)
		}
		if _, err := tls.X509KeyPair(e.Certificate, e.Key); err != nil {
			return problem(KindInvalid, "both in PEM; the certificate first, then its chain", "the certificate and the key do not fit: %v", err)
		}
		return nil
	case TLSACME:
		if e.Host == "" || !strings.Contains(e.Host, ".") {
			return problem(KindInvalid, "name it: --host nas.example.org", "a certificate authority needs the name that the certificate is for")
		}
		if u, err := url.Parse(e.ACME.Directory); e.ACME.Directory != "" && (err != nil || u.Scheme != "https" || u.Host == "") {
			return problem(KindInvalid, "as in https://acme-v02.api.letsencrypt.org/directory", "%.80q is not the URL of an ACME directory", e.ACME.Directory)
		}
		if len(e.ACME.CA) > maxPEM || len(e.ACME.CA) > 0 && !x509.NewCertPool().AppendCertsFromPEM(e.ACME.CA) {
			return problem(KindInvalid, "a file of certificates in PEM", "there is no certificate in --acme-ca")
		}
		return nil
	}
	return problem(KindInvalid, "acme, self, or give a certificate", "%.40q says of no certificate where it comes from", e.TLS)
}

// signItself makes the certificate of an exposure that nobody vouches for. It is
// kept, so that a browser that was told to trust it goes on to.
func (e *exposureRecord) signItself() error {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make a certificate: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(e.Created.UnixNano()), Subject: pkix.Name{CommonName: cmp.Or(e.Host, "overlayd")},
		NotBefore: e.Created.Add(-24 * time.Hour), NotAfter: e.Created.AddDate(10, 0, 0), // clocks may be a day off
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	if e.Host != "" {
		template.DNSNames = []string{e.Host}
	} else if !e.Listen.Addr().IsUnspecified() {
		template.IPAddresses = []net.IP{e.Listen.Addr().AsSlice()}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		return fmt.Errorf("make a certificate: %w", err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return fmt.Errorf("make a certificate: %w", err)
	}
	e.Certificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	e.Key = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})
	return nil
}

// fingerprint is the SHA-256 of the certificate, as browsers show it; empty:
// there is none, or not yet.
func (e *exposureRecord) fingerprint() string {
	block, _ := pem.Decode(e.Certificate)
	if block == nil {
		return ""
	}
	sum := sha256.Sum256(block.Bytes)
	return strings.ToUpper(hex.EncodeToString(sum[:]))
}

// isHostName reports whether s can be a name in the DNS (RFC 1123).
func isHostName(s string) bool {
	if len(s) > 253 {
		return false
	}
	for l := range strings.SplitSeq(s, ".") {
		if l == "" || l != dnsLabel(l) {
			return false
		}
	}
	return true
}

// clashes reports whether two exposures want the same port.
func (e *exposureRecord) clashes(o *exposureRecord) bool {
	same := e.Listen.Addr() == o.Listen.Addr() || e.Listen.Addr().IsUnspecified() || o.Listen.Addr().IsUnspecified()
	return same && e.Listen.Port() == o.Listen.Port() && (e.Protocol == ExposeUDP) == (o.Protocol == ExposeUDP)
}

// beside says how an exposure could be at the port of another; "": as it is. Pages that
// are told apart by their names can.
func (e *exposureRecord) beside(o *exposureRecord) (hint string) {
	const another = "choose another port"
	switch {
	case e.Protocol != ExposeHTTP || o.Protocol != ExposeHTTP:
		return another
	case o.Host == "":
		return another + ": what is there answers to every name"
	case e.Host == "":
		return "say which name it is for with --host, as the other is for " + o.Host + " only; or choose another port"
	case e.Host == o.Host:
		return "choose another name with --host, or another port"
	case e.Listen != o.Listen:
		return "write --on " + ListenText(o.Listen) + " as that one does, to be beside it by another name; or choose another port"
	case (e.TLS == TLSNone) != (o.TLS == TLSNone) && o.TLS == TLSNone:
		return "leave TLS away, as the page beside it does; or choose another port"
	case (e.TLS == TLSNone) != (o.TLS == TLSNone):
		return "add --tls, as the page beside it has; or choose another port"
	}
	return ""
}

// addExposure decides what a new exposure changes.
func (s *snapshot) addExposure(e exposureRecord) (exposureRecord, []Record, error) {
	if err := e.check(); err != nil {
		return e, nil, err
	}
	if len(s.exposures) >= maxExposures {
		return e, nil, problem(KindConflict, "remove some: overlayd expose list", "%d ports are published; more are not", maxExposures)
	}
	for _, o := range s.exposuresByAge() {
		if !e.clashes(o) {
			continue
		}
		if hint := e.beside(o); hint != "" {
			return e, nil, problem(KindConflict, hint+", or: overlayd expose remove "+o.ID,
				"port %d is taken: %s leads to %s", e.Listen.Port(), o.ID, o.Target)
		}
	}
	if e.TLS == TLSSelf {
		if err := e.signItself(); err != nil {
			return e, nil, err
		}
	}
	e.Secret = make([]byte, 32)
	rand.Read(e.Secret)
	return e, []Record{putExposure(e)}, nil
}

// exposure finds one by its id, or by its port, with its name or without, when there is
// one such.
func (s *snapshot) exposure(ref string) (*exposureRecord, error) {
	if e := s.exposures[ref]; e != nil {
		return e, nil
	}
	var found []*exposureRecord
	for _, e := range s.exposuresByAge() {
		if at := e.Listen; ":"+strconv.Itoa(int(at.Port())) == ref || at.String() == ref || PlaceText(e.Host, at) == ref {
			found = append(found, e)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, problem(KindNotFound, "list them with: overlayd expose list", "no port is published as %.80q", ref)
	}
	return nil, problem(KindConflict, "name it by its id; list them with: overlayd expose list", "%s is published %d times", ref, len(found))
}

func (s *snapshot) removeExposure(ref string) (exposureRecord, []Record, error) {
	e, err := s.exposure(ref)
	if err != nil {
		return exposureRecord{}, nil, err
	}
	return *e, []Record{drop(keyExposure + e.ID)}, nil
}

func (s *snapshot) exposuresByAge() []*exposureRecord {
	return slices.SortedFunc(maps.Values(s.exposures), func(a, b *exposureRecord) int {
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
}

// open returns what is needed to run an exposure.
func (s *snapshot) open(e *exposureRecord) OpenExposure {
	o := OpenExposure{
		Exposure: Exposure{
			ID: e.ID, Target: e.Target, Listen: e.Listen, Protocol: e.Protocol, Allow: e.Allow, Host: e.Host, TLS: e.TLS,
			Login: e.Login, Proxy: e.Proxy, By: e.By, Created: e.Created, Until: e.Until,
		},
		UserID: e.User, Certificate: e.Certificate, Key: e.Key, Secret: e.Secret,
	}
	if e.ACME != nil {
		o.ACME = *e.ACME
	}
	if e.User != "" {
		u := s.users[e.User]
		o.Suspended = u == nil || u.Disabled
		if u != nil {
			o.User = u.Name
		}
	}
	return o
}

// Exposures returns what is to be published now, the oldest first.
func (s *Server) Exposures() (list []OpenExposure) {
	snap, now := s.ledger.now(), s.o.Now()
	for _, e := range snap.exposuresByAge() {
		if e.Until.IsZero() || now.Before(e.Until) {
			list = append(list, snap.open(e))
		}
	}
	return list
}
