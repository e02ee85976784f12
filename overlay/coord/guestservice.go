package coord

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"time"

	"connectrpc.com/connect"

	"overlayd/overlay/coord/api"
	"overlayd/overlay/login"
)

func sshKeyToWire(k SSHKey) *api.KeyInfo {
	return &api.KeyInfo{User: k.User, Fingerprint: k.Fingerprint, Type: k.Type, Comment: k.Comment, CreatedAt: timeToWire(k.Created)}
}

func (s adminService) changeKey(ctx context.Context, decide func(*snapshot) (sshKeyRecord, []Record, error)) (*api.KeyInfo, error) {
	var k sshKeyRecord
	err := s.ledger.change(ctx, func(snap *snapshot) (changes []Record, err error) {
		k, changes, err = decide(snap)
		return changes, err
	})
	if err != nil {
		return nil, err
	}
	return sshKeyToWire(k.info(s.ledger.now())), nil
}

func (s adminService) AddKey(ctx context.Context, req *connect.Request[api.AddKeyRequest]) (*connect.Response[api.AddKeyResponse], error) {
	k, err := s.changeKey(ctx, func(snap *snapshot) (sshKeyRecord, []Record, error) {
		return snap.addSSHKey(req.Msg.User, req.Msg.Key, s.o.Now().UTC())
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&api.AddKeyResponse{Key: k}), nil
}

func (s adminService) ListKeys(_ context.Context, req *connect.Request[api.ListKeysRequest]) (*connect.Response[api.ListKeysResponse], error) {
	snap, user := s.ledger.now(), ""
	if req.Msg.User != "" {
		u, err := snap.user(req.Msg.User)
		if err != nil {
			return nil, err
		}
		user = u.ID
	}
	resp := &api.ListKeysResponse{}
	for _, k := range snap.sshKeysOf(user) {
		resp.Keys = append(resp.Keys, sshKeyToWire(k.info(snap)))
	}
	return connect.NewResponse(resp), nil
}

func (s adminService) RemoveKey(ctx context.Context, req *connect.Request[api.RemoveKeyRequest]) (*connect.Response[api.RemoveKeyResponse], error) {
	k, err := s.changeKey(ctx, func(snap *snapshot) (sshKeyRecord, []Record, error) {
		return snap.removeSSHKey(req.Msg.User, req.Msg.Key)
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&api.RemoveKeyResponse{Key: k}), nil
}

func (s adminService) SetPassword(ctx context.Context, req *connect.Request[api.SetPasswordRequest]) (*connect.Response[api.SetPasswordResponse], error) {
	m, hash := req.Msg, ""
	resp := &api.SetPasswordResponse{}
	if !m.Remove {
		password := m.Password
		if password == "" {
			password = login.NewPassword()
			resp.Password = password
		} else if err := login.CheckPassword(password); err != nil {
			return nil, problem(KindInvalid, "leave it out, and one is made up", "%v", err)
		}
		hash = login.NewHash(password).Encode()
	}
	u, err := s.changeUser(ctx, func(snap *snapshot) (userRecord, []Record, error) {
		return snap.setPassword(m.User, hash, s.o.Now().UTC())
	})
	if err != nil {
		return nil, err
	}
	resp.User = u
	return connect.NewResponse(resp), nil
}

func (s adminService) MakeSeed(ctx context.Context, req *connect.Request[api.MakeSeedRequest]) (*connect.Response[api.MakeSeedResponse], error) {
	seed := login.NewSeed()
	u, err := s.changeUser(ctx, func(snap *snapshot) (userRecord, []Record, error) {
		return snap.setSeed(req.Msg.User, seed, s.o.Now().UTC())
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&api.MakeSeedResponse{User: u, Uri: seed.URI("overlayd", u.Name), Seed: seed.Text()}), nil
}

func (s adminService) AddExposure(ctx context.Context, req *connect.Request[api.AddExposureRequest]) (*connect.Response[api.AddExposureResponse], error) {
	if s.o.Publisher == nil {
		return nil, problem(KindInvalid, "run it on the first relay of the network", "this coordinator publishes nothing")
	}
	want, err := exposureFromWire(req.Msg.Exposure)
	if err != nil {
		return nil, err
	}
	now := s.o.Now().UTC()
	rec := exposureRecord{
		ID: newID("e", 9), Target: want.Target, Listen: want.Listen, Protocol: want.Protocol, Allow: want.Allow, Host: want.Host,
		TLS: want.TLS, Login: want.Login, Proxy: want.Proxy, By: actOf(ctx).who, Created: now,
		Certificate: []byte(req.Msg.Certificate), Key: []byte(req.Msg.Key),
	}
	if rec.TLS == TLSACME {
		rec.ACME = &want.ACME
	}
	switch ttl := time.Duration(req.Msg.TtlMs) * time.Millisecond; {
	case ttl < 0 || ttl > maxGrant:
		return nil, problem(KindInvalid, "e.g. --ttl 8h; without it the port stays until it is removed", "a port cannot be published for %v", ttl)
	case ttl > 0:
		rec.Until = now.Add(ttl)
	}
	// Whether the port can be had is tried outside the ledger, and before anything
	// is kept.
	snap := s.ledger.now()
	if n := actOf(ctx).member; n != nil {
		rec.User = n.User
	}
	rec, _, err = snap.addExposure(rec)
	if err == nil {
		err = s.o.Publisher.Try(snap.open(&rec))
	}
	if err != nil {
		return nil, err
	}
	err = s.ledger.change(ctx, func(snap *snapshot) (changes []Record, err error) {
		rec, changes, err = snap.addExposure(rec)
		return changes, err
	})
	if err != nil {
		return nil, err
	}
	s.o.Log.Info("port published", "exposure", rec.ID, "addr", rec.Listen, "target", rec.Target, "by", rec.By)
	return connect.NewResponse(&api.AddExposureResponse{Exposure: s.exposureToWire(s.ledger.now(), &rec)}), nil
}

func (s adminService) ListExposures(context.Context, *connect.Request[api.ListExposuresRequest]) (*connect.Response[api.ListExposuresResponse], error) {
	snap, resp, now := s.ledger.now(), &api.ListExposuresResponse{}, s.o.Now()
	for _, e := range snap.exposuresByAge() {
		if e.Until.IsZero() || now.Before(e.Until) {
			resp.Exposures = append(resp.Exposures, s.exposureToWire(snap, e))
		}
	}
	return connect.NewResponse(resp), nil
}

func (s adminService) RemoveExposure(ctx context.Context, req *connect.Request[api.RemoveExposureRequest]) (*connect.Response[api.RemoveExposureResponse], error) {
	var e exposureRecord
	var info *api.Exposure
	ctx, ended := withTally(ctx)
	err := s.ledger.change(ctx, func(snap *snapshot) (changes []Record, err error) {
		if e, changes, err = snap.removeExposure(req.Msg.Id); err == nil {
			info = s.exposureToWire(snap, &e)
		}
		return changes, err
	})
	if err != nil {
		return nil, err
	}
	s.o.Log.Info("port published no more", "exposure", e.ID, "addr", e.Listen, "by", actOf(ctx).who)
	return connect.NewResponse(&api.RemoveExposureResponse{Exposure: info, Closed: uint32(ended.n)}), nil
}

func (s adminService) exposureToWire(snap *snapshot, e *exposureRecord) *api.Exposure {
	o := snap.open(e)
	w := &api.Exposure{
		Id: o.ID, Target: o.Target, Listen: ListenText(o.Listen), Protocol: o.Protocol, Allow: prefixesToWire(o.Allow), Host: o.Host,
		Tls: o.TLS, AcmeDirectory: o.ACME.Directory, AcmeCa: string(o.ACME.CA), Login: o.Login, ProxyProtocol: o.Proxy,
		Fingerprint: e.fingerprint(), User: o.User, By: o.By, CreatedAt: timeToWire(o.Created), Until: timeToWire(o.Until),
	}
	if s.o.Publisher != nil {
		var n int
		w.State, w.Problem, n = s.o.Publisher.State(o.ID)
		w.Connections = uint32(n)
		if w.Problem == "" && w.State == ExposureListening {
			w.Problem = s.unreached(&o)
		}
	}
	return w
}

// unreached says why nobody would reach an exposure's target now, as far as that is
// known without asking a LAN for a name. Whoever may log in is not asked about.
func (s *Server) unreached(e *OpenExposure) string {
	host, port, err := net.SplitHostPort(e.Target)
	if err != nil {
		return ""
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		if addr, err = s.HostAddr("", host); err != nil {
			return ""
		}
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return ""
	}
	network := "tcp"
	if e.Protocol == ExposeUDP {
		network = "udp"
	}
	_, err = s.Reach(e.User, network, netip.AddrPortFrom(addr, uint16(n)))
	p, ok := AsProblem(err)
	if !ok || e.Login && p.Kind == KindDenied {
		return ""
	}
	return p.Message
}

// ListenText writes an address to listen on as people do.
func ListenText(a netip.AddrPort) string {
	if a.Addr().IsUnspecified() {
		return ":" + netip.AddrPortFrom(netip.IPv4Unspecified(), a.Port()).String()[len("0.0.0.0:"):]
	}
	return a.String()
}

// PlaceText writes where an exposure is reached: by its name, or where it listens.
func PlaceText(host string, listen netip.AddrPort) string {
	if host == "" {
		return ListenText(listen)
	}
	return host + ":" + strconv.Itoa(int(listen.Port()))
}

func exposureFromWire(w *api.Exposure) (Exposure, error) {
	e := Exposure{
		ID: w.GetId(), Target: w.GetTarget(), Protocol: w.GetProtocol(), Host: w.GetHost(), TLS: w.GetTls(),
		ACME:  ACME{Directory: w.GetAcmeDirectory(), CA: []byte(w.GetAcmeCa())},
		Login: w.GetLogin(), Proxy: w.GetProxyProtocol(), User: w.GetUser(), By: w.GetBy(),
		Created: timeFromWire(w.GetCreatedAt()), Until: timeFromWire(w.GetUntil()),
		Fingerprint: w.GetFingerprint(), State: w.GetState(), Problem: w.GetProblem(), Connections: int(w.GetConnections()),
	}
	if len(e.ACME.CA) == 0 {
		e.ACME.CA = nil
	}
	var err error
	if e.Listen, err = ParseListen(w.GetListen()); err != nil {
		return e, err
	}
	e.Allow, err = parsePrefixes(w.GetAllow())
	return e, err
}
