package coord

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"time"

	"overlayd/overlay/key"
)

// SelfSigned makes the certificate of a coordinator that has no domain name. It
// is the same each time for the same key and host, and so is its pin.
func SelfSigned(k key.Machine, host string) (tls.Certificate, key.Pin, error) {
	signer := k.Signer()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "overlayd"},
		// The pin is what counts, and it has no date; clocks may be wrong.
		NotBefore:             time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:              time.Date(2099, 12, 31, 0, 0, 0, 0, time.UTC),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	if ip := net.ParseIP(host); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else if host != "" {
		template.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
	if err != nil {
		return tls.Certificate{}, key.Pin{}, fmt.Errorf("make certificate for %s: %w", host, err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, key.Pin{}, fmt.Errorf("make certificate for %s: %w", host, err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: signer, Leaf: leaf}, key.PinOf(leaf), nil
}

// TLSConfig is a coordinator's: TLS 1.3, HTTP/2 and HTTP/1.1.
func TLSConfig(cert tls.Certificate) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{cert},
		NextProtos:   []string{"h2", "http/1.1"},
	}
}

// NewHTTPServer returns a server for the TLS port, with limits for strangers.
// It has no limit on the time of a whole request, because Watch has no end:
// Server.Handler limits each call.
func NewHTTPServer(h http.Handler, cert tls.Certificate, log *slog.Logger) *http.Server {
	if log == nil {
		log = slog.Default()
	}
	return &http.Server{
		Handler:           h,
		TLSConfig:         TLSConfig(cert),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 32, WriteByteTimeout: silence},
	}
}

// ClientTLS is a node's, for the coordinator and for the relay on its port: with a pin that alone counts, and without one the
// system's certificate authorities.
func ClientTLS(endpoint string, pin key.Pin) (*tls.Config, error) {
	host, _, err := net.SplitHostPort(endpoint)
	if err != nil {
		return nil, problem(KindInvalid, "write it as host:port", "the coordinator's address %q is malformed", endpoint)
	}
	c := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: host, NextProtos: []string{"h2", "http/1.1"}}
	if pin.IsZero() {
		return c, nil
	}
	c.InsecureSkipVerify = true // VerifyConnection does it
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return problem(KindDenied, "", "%s shows no certificate", endpoint)
		}
		if got := key.PinOf(cs.PeerCertificates[0]); got != pin {
			return problem(KindDenied, "if the relay was installed anew, ask for a new link; else somebody is in between",
				"%s has the key %s, and the link says %s", endpoint, got, pin)
		}
		return nil
	}
	return c, nil
}
