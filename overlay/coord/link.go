package coord

import (
	"encoding/base64"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"net"
	"strings"

	"overlayd/overlay/key"
)

// Link is an invite as it is handed over: where the coordinator is, how to know
// it, and the secret that it asks for. It prints without the secret.
type Link struct {
	Endpoint string     // host:port
	Pin      key.Pin    // of the coordinator's TLS key; zero: ordinary certificate checks
	Invite   string     // the invite's ID
	Secret   key.Secret // the invite's secret
}

// A link reads ovl://HOST:PORT/PIN/ID.SECRET.CRC. The brackets of an IPv6
// address are written %5B and %5D, because shells take brackets for patterns.
const (
	linkScheme = "ovl://"
	linkNoPin  = "-"
	maxLink    = 512 // bytes; a host name has at most 253
)

var linkBrackets = strings.NewReplacer("[", "%5B", "]", "%5D")
var linkUnbrackets = strings.NewReplacer("%5B", "[", "%5D", "]", "%5b", "[", "%5d", "]")

// Encode returns the link with its secret: one word that no shell changes.
func (l Link) Encode() string {
	s := l.public() + "." + base64.RawURLEncoding.EncodeToString(l.Secret.Expose())
	return s + "." + linkSum(s)
}

func (l Link) public() string {
	pin := linkNoPin
	if !l.Pin.IsZero() {
		pin = l.Pin.String()
	}
	return linkScheme + linkBrackets.Replace(l.Endpoint) + "/" + pin + "/" + l.Invite
}

// linkSum finds a lost or changed character.
func linkSum(s string) string { return fmt.Sprintf("%08x", crc32.ChecksumIEEE([]byte(s))) }

// ParseLink reads what Encode wrote. Its error never quotes the link, which is
// a secret.
func ParseLink(s string) (Link, error) {
	s = strings.TrimSpace(s)
	switch {
	case !strings.HasPrefix(s, linkScheme):
		return Link{}, problem(KindInvalid, "a link starts with "+linkScheme+"; make one with: overlayd invite",
			"this is not an invite link")
	case len(s) > maxLink:
		return Link{}, mangled("it is longer than a link can be")
	}
	body, sum, ok := cutLast(s, ".")
	if !ok || sum != linkSum(body) {
		return Link{}, mangled("its checksum does not match")
	}
	public, secret, ok := cutLast(body, ".")
	if !ok {
		return Link{}, mangled("it has no secret")
	}
	parts := strings.Split(strings.TrimPrefix(public, linkScheme), "/")
	if len(parts) != 3 {
		return Link{}, mangled("it does not have three parts")
	}
	l := Link{Endpoint: linkUnbrackets.Replace(parts[0]), Invite: parts[2]}
	if host, port, err := net.SplitHostPort(l.Endpoint); err != nil || host == "" || port == "" ||
		strings.Trim(l.Endpoint, endpointChars) != "" {
		return Link{}, mangled("its address is not host:port")
	}
	if !validID(l.Invite) {
		return Link{}, mangled("its invite id is malformed")
	}
	if parts[1] != linkNoPin {
		pin, err := key.ParsePin(parts[1])
		if err != nil || pin.IsZero() {
			return Link{}, mangled("its key fingerprint is malformed")
		}
		l.Pin = pin
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(secret)
	if err != nil {
		return Link{}, mangled("its secret is malformed")
	}
	if l.Secret, err = key.ParseSecret(b); err != nil {
		return Link{}, mangled("its secret is malformed")
	}
	return l, nil
}

// endpointChars are those of host names, IP addresses, zones and ports.
const endpointChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:[]%"

func mangled(why string) error {
	return problem(KindInvalid, "copy the whole link again, without line breaks", "the invite link is mangled: %s", why)
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// String returns the link without its secret.
func (l Link) String() string { return l.public() + ".(hidden)" }

// Format is String for every verb.
func (l Link) Format(f fmt.State, _ rune) { io.WriteString(f, l.String()) }

// LogValue is String.
func (l Link) LogValue() slog.Value { return slog.StringValue(l.String()) }

// MarshalText is String: a link leaves the program by Encode alone.
func (l Link) MarshalText() ([]byte, error) { return []byte(l.String()), nil }
