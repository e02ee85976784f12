package coord

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"time"

	"connectrpc.com/connect"

	"overlayd/overlay/coord/api"
)

// AddSSHKey lets whoever holds a key be a user at the jump host. The text is a
// line as in authorized_keys.
func (a *Admin) AddSSHKey(ctx context.Context, user, text string) (SSHKey, error) {
	resp, err := a.c.AddKey(ctx, connect.NewRequest(&api.AddKeyRequest{User: user, Key: text}))
	if err != nil {
		return SSHKey{}, called("add key", err)
	}
	return sshKeyFromWire(resp.Msg.Key)
}

// SSHKeys lists a user's keys, or with no name all.
func (a *Admin) SSHKeys(ctx context.Context, user string) ([]SSHKey, error) {
	resp, err := a.c.ListKeys(ctx, connect.NewRequest(&api.ListKeysRequest{User: user}))
	if err != nil {
		return nil, called("list keys", err)
	}
	return each(resp.Msg.Keys, sshKeyFromWire)
}

// RemoveSSHKey takes a key away, named by its fingerprint, its comment or
// itself, and ends what was begun with it.
func (a *Admin) RemoveSSHKey(ctx context.Context, user, key string) (SSHKey, error) {
	resp, err := a.c.RemoveKey(ctx, connect.NewRequest(&api.RemoveKeyRequest{User: user, Key: key}))
	if err != nil {
		return SSHKey{}, called("remove key", err)
	}
	return sshKeyFromWire(resp.Msg.Key)
}

func sshKeyFromWire(w *api.KeyInfo) (SSHKey, error) {
	return SSHKey{
		User: w.GetUser(), Fingerprint: w.GetFingerprint(), Type: w.GetType(), Comment: w.GetComment(),
		Created: timeFromWire(w.GetCreatedAt()),
	}, nil
}

// SetPassword gives a user a password for published pages, and returns the one
// that was made up when it is given none.
func (a *Admin) SetPassword(ctx context.Context, user, password string) (made string, u User, err error) {
	resp, err := a.c.SetPassword(ctx, connect.NewRequest(&api.SetPasswordRequest{User: user, Password: password}))
	if err != nil {
		return "", User{}, called("set password", err)
	}
	u, err = userFromWire(resp.Msg.User)
	return resp.Msg.Password, u, err
}

// RemovePassword takes a user's password and codes away.
func (a *Admin) RemovePassword(ctx context.Context, user string) (User, error) {
	resp, err := a.c.SetPassword(ctx, connect.NewRequest(&api.SetPasswordRequest{User: user, Remove: true}))
	if err != nil {
		return User{}, called("remove password", err)
	}
	return userFromWire(resp.Msg.User)
}

// MakeSeed makes the seed of a user's codes anew. It returns it as a URI, for a
// QR code, and as text.
func (a *Admin) MakeSeed(ctx context.Context, user string) (uri, seed string, err error) {
	resp, err := a.c.MakeSeed(ctx, connect.NewRequest(&api.MakeSeedRequest{User: user}))
	if err != nil {
		return "", "", called("make seed", err)
	}
	return resp.Msg.Uri, resp.Msg.Seed, nil
}

// NewExposure is a wish for an Exposure.
type NewExposure struct {
	Exposure
	TTL         time.Duration // 0: until it is removed
	Certificate []byte        // in PEM, with TLSGiven
	Key         []byte        // likewise
}

// Expose publishes a port.
func (a *Admin) Expose(ctx context.Context, want NewExposure) (Exposure, error) {
	e := want.Exposure
	resp, err := a.c.AddExposure(ctx, connect.NewRequest(&api.AddExposureRequest{
		Exposure: &api.Exposure{
			Target: e.Target, Listen: ListenText(e.Listen), Protocol: e.Protocol, Allow: prefixesToWire(e.Allow), Host: e.Host,
			Tls: e.TLS, AcmeDirectory: e.ACME.Directory, AcmeCa: string(e.ACME.CA), Login: e.Login, ProxyProtocol: e.Proxy,
		},
		TtlMs: want.TTL.Milliseconds(), Certificate: string(want.Certificate), Key: string(want.Key),
	}))
	if err != nil {
		return Exposure{}, called("expose "+e.Target, err)
	}
	return exposureFromWire(resp.Msg.Exposure)
}

// Exposures lists the published ports, the oldest first.
func (a *Admin) Exposures(ctx context.Context) ([]Exposure, error) {
	resp, err := a.c.ListExposures(ctx, connect.NewRequest(&api.ListExposuresRequest{}))
	if err != nil {
		return nil, called("list exposures", err)
	}
	return each(resp.Msg.Exposures, exposureFromWire)
}

// RemoveExposure ends one, named by its id or its port, and the connections
// through it, whose number it returns.
func (a *Admin) RemoveExposure(ctx context.Context, id string) (Exposure, int, error) {
	resp, err := a.c.RemoveExposure(ctx, connect.NewRequest(&api.RemoveExposureRequest{Id: id}))
	if err != nil {
		return Exposure{}, 0, called("remove exposure", err)
	}
	e, err := exposureFromWire(resp.Msg.Exposure)
	return e, int(resp.Msg.Closed), err
}

// ParseListen reads [ADDRESS]:PORT; no address is every one.
func ParseListen(s string) (netip.AddrPort, error) {
	const hint = "write it as :8080 or 203.0.113.10:8080"
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return netip.AddrPort{}, problem(KindInvalid, hint, "%.80q is not [ADDRESS]:PORT", s)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return netip.AddrPort{}, problem(KindInvalid, "choose one from 1 to 65535", "%.80q has no port", s)
	}
	addr := netip.IPv4Unspecified()
	if host != "" {
		if addr, err = netip.ParseAddr(host); err != nil || addr.Zone() != "" {
			return netip.AddrPort{}, problem(KindInvalid, hint, "%.80q is not an address of this machine", host)
		}
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), nil
}
