package coord

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"overlayd/internal/limit"
	"overlayd/overlay/coord/api"
	"overlayd/overlay/login"
)

// publisher is a Publisher that runs nothing.
type publisher struct {
	mu    sync.Mutex // guards the rest
	tried []OpenExposure
	fail  error
}

func (p *publisher) Try(e OpenExposure) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tried = append(p.tried, e)
	return p.fail
}

func (p *publisher) State(string) (string, string, int) { return ExposureListening, "", 3 }

func sshKeyLine(t testing.TB, comment string) string {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k))) + " " + comment
}

func TestSSHKeys(t *testing.T) {
	n, ctx := newNetwork(t), t.Context()
	n.user("alice")
	n.user("bob")
	line := sshKeyLine(t, "alice@home")
	k, err := n.admin.AddSSHKey(ctx, "alice", line+"\n")
	if err != nil || k.User != "alice" || k.Comment != "alice@home" || !strings.HasPrefix(k.Fingerprint, "SHA256:") {
		t.Fatalf("%+v, %v", k, err)
	}
	if again, err := n.admin.AddSSHKey(ctx, "alice", line); err != nil || again.Fingerprint != k.Fingerprint {
		t.Errorf("again: %+v, %v", again, err)
	}
	_, err = n.admin.AddSSHKey(ctx, "bob", line)
	wantKind(t, err, KindConflict, "belongs to the user alice")
	_, err = n.admin.AddSSHKey(ctx, "carol", sshKeyLine(t, ""))
	wantKind(t, err, KindNotFound, "carol")

	p, err := ParseSSHKey(line)
	if err != nil {
		t.Fatal(err)
	}
	if _, name, ok := n.server.UserOfKey(p.Key.Marshal()); !ok || name != "alice" {
		t.Errorf("the key is %q's, %v", name, ok)
	}
	if _, err := n.admin.UpdateUser(ctx, "alice", UserUpdate{Disabled: new(true)}); err != nil {
		t.Fatal(err)
	}
	if _, _, ok := n.server.UserOfKey(p.Key.Marshal()); ok {
		t.Error("the key of a disabled user is good")
	}
	if list, err := n.admin.SSHKeys(ctx, ""); err != nil || len(list) != 1 || list[0].Fingerprint != k.Fingerprint {
		t.Errorf("%+v, %v", list, err)
	}
	_, err = n.admin.RemoveSSHKey(ctx, "alice", "no such")
	wantKind(t, err, KindNotFound, "users keys alice")
	if _, err := n.admin.RemoveSSHKey(ctx, "alice", k.Fingerprint); err != nil {
		t.Error(err)
	}
	if _, err := n.admin.AddSSHKey(ctx, "bob", line); err != nil {
		t.Errorf("a key that was taken away: %v", err)
	}
	if _, err := n.admin.RemoveUser(ctx, "bob"); err != nil {
		t.Fatal(err)
	}
	if list, err := n.admin.SSHKeys(ctx, ""); err != nil || len(list) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestParseSSHKeyRefuses(t *testing.T) {
	good := sshKeyLine(t, "x")
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	weak, err := ssh.NewPublicKey(&short.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string][2]string{
		"nothing":        {" \n", "no key"},
		"a private key":  {"-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA", "private key"},
		"words":          {"hello there", "not a public key"},
		"options":        {`command="id" ` + good, "no options"},
		"two":            {good + "\n" + sshKeyLine(t, "y"), "more than one"},
		"a short key":    {string(ssh.MarshalAuthorizedKey(weak)), "1024 bits"},
		"cut off":        {good[:40], "not a public key"},
		"much too long":  {strings.Repeat("x", maxSSHKey+1), "longer"},
		"an old type":    {"ssh-dss AAAAB3NzaC1kc3M=", "not a public key"},
		"no base64 body": {"ssh-ed25519 !!!!", "not a public key"},
	} {
		_, err := ParseSSHKey(c[0])
		if err == nil || !strings.Contains(err.Error(), c[1]) {
			t.Errorf("%s: %v", name, err)
		}
		if p, ok := AsProblem(err); err != nil && (!ok || p.Hint == "" || strings.Contains(p.Message+p.Hint, "b3BlbnNz")) {
			t.Errorf("%s: no hint, or the input in it: %v", name, err)
		}
	}
}

func FuzzParseSSHKey(f *testing.F) {
	f.Add(sshKeyLine(f, "alice@home"))
	f.Add(`no-pty,command="x y" ` + sshKeyLine(f, ""))
	f.Add("ssh-rsa AAAAB3NzaC1yc2E= x")
	f.Add("# a comment\n\n" + sshKeyLine(f, "\x00"))
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParseSSHKey(text)
		if err != nil {
			return
		}
		if strings.ContainsAny(p.Comment, "\n\x1b\x00") || len(p.Comment) > maxComment {
			t.Errorf("the comment %q", p.Comment)
		}
		again, err := ParseSSHKey(string(ssh.MarshalAuthorizedKey(p.Key)))
		if err != nil || !slices.Equal(again.Key.Marshal(), p.Key.Marshal()) {
			t.Errorf("%q is not read again: %v", text, err)
		}
	})
}

var somewhere = netip.MustParseAddr("198.51.100.7")

// proven gives a user a password and codes.
func proven(t *testing.T, n *network, name string) (password string, seed login.Seed) {
	t.Helper()
	password, _, err := n.admin.SetPassword(t.Context(), name, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err = n.admin.MakeSeed(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	u := n.server.ledger.now().userByName[name]
	seed, err = login.ParseSeed(n.server.ledger.now().logins[u.ID].Seed)
	if err != nil {
		t.Fatal(err)
	}
	return password, seed
}

func TestLogin(t *testing.T) {
	n, ctx := newNetwork(t), t.Context()
	alice := n.user("alice")
	n.user("bob")
	if _, _, err := n.server.Login(ctx, somewhere, "alice", "", ""); err == nil {
		t.Error("without a password alice is let in")
	}
	password, seed := proven(t, n, "alice")
	try := func(name, password, code string) error {
		id, user, err := n.server.Login(ctx, somewhere, name, password, code)
		if err == nil && (id != alice.ID || user != "alice") {
			t.Errorf("logged in as %s", user)
		}
		return err
	}
	code := func() string { return seed.Code(n.now.Now()) }
	used := code()
	if err := try("alice", password, used); err != nil {
		t.Errorf("the right ones: %v", err)
	}
	records, rev, err := n.server.o.Store.Load(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if restarted, err := newSnapshot(rev, records); err != nil {
		t.Fatal(err)
	} else if l := restarted.logins[alice.ID]; l.Used == 0 {
		t.Error("after a restart the code could be used again")
	} else if _, err := restarted.useCode(l, l.Used); !errors.Is(err, errLogin) {
		t.Errorf("after a restart the same code: %v", err)
	} else if c, err := restarted.useCode(l, l.Used+1); err != nil || len(c) != 1 {
		t.Errorf("after a restart the next code: %v", err)
	}
	if last := n.lines()[len(n.lines())-1]; last.Who != "user:alice" || last.Call != "Login" || last.From != somewhere.String() {
		t.Errorf("the record says %+v", last)
	}
	for name, err := range map[string]error{
		"the same code again": try("alice", password, used),
		"a wrong password":    try("alice", password+"x", code()),
		"a wrong code":        try("alice", password, "000000"),
		"somebody else":       try("bob", password, code()),
		"nobody":              try("mallory", password, code()),
		"an endless name":     try(strings.Repeat("x", 4096), password, code()),
	} {
		if !errors.Is(err, errLogin) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, e := range n.lines() {
		b, err := json.Marshal(e)
		if err != nil || strings.Contains(string(b), password) || strings.Contains(string(b), "argon2") || strings.Contains(string(b), seed.Text()) {
			t.Errorf("the record tells too much: %s, %v", b, err)
		}
	}
}

// TestLoginEnds: a login holds until the password is another one, the user was
// revoked, or there is no password any more.
func TestLoginEnds(t *testing.T) {
	n, ctx := newNetwork(t), t.Context()
	alice := n.user("alice")
	_, seed := proven(t, n, "alice")
	try := func(name, password, code string) error {
		_, _, err := n.server.Login(ctx, somewhere, name, password, code)
		return err
	}
	code := func() string { return seed.Code(n.now.Now()) }
	at := n.now.Now()
	if name, ok := n.server.LoginHolds(alice.ID, at); !ok || name != "alice" {
		t.Error("the login does not hold")
	}
	n.now.add(time.Minute)
	if _, _, err := n.admin.SetPassword(ctx, "alice", "a password of my own"); err != nil {
		t.Fatal(err)
	}
	if _, ok := n.server.LoginHolds(alice.ID, at); ok {
		t.Error("the login holds after another password was set")
	}
	if err := try("alice", "a password of my own", code()); err != nil {
		t.Errorf("the new password, the old codes: %v", err)
	}
	at = n.now.Now()
	n.now.add(time.Minute)
	if _, err := n.admin.Revoke(ctx, "alice"); err != nil {
		t.Fatal(err)
	}
	n.now.add(time.Minute)
	if _, err := n.admin.UpdateUser(ctx, "alice", UserUpdate{Disabled: ptr(false)}); err != nil {
		t.Fatal(err)
	}
	if _, ok := n.server.LoginHolds(alice.ID, at); ok {
		t.Error("a login from before a revocation holds again")
	}
	if err := try("alice", "a password of my own", code()); err != nil {
		t.Errorf("a new login after a revocation: %v", err)
	}
	_, _, err := n.admin.SetPassword(ctx, "alice", "short")
	wantKind(t, err, KindInvalid, "shorter")
	if _, err := n.admin.RemovePassword(ctx, "alice"); err != nil {
		t.Fatal(err)
	}
	n.now.add(time.Minute)
	if err := try("alice", "a password of my own", code()); !errors.Is(err, errLogin) {
		t.Errorf("without a password: %v", err)
	}
	if us, err := n.admin.Users(ctx); err != nil || us[0].Password || us[0].Codes {
		t.Errorf("%+v, %v", us, err)
	}
	for _, e := range n.lines() {
		b, err := json.Marshal(e)
		if err != nil || strings.Contains(string(b), "of my own") || strings.Contains(string(b), "argon2") || strings.Contains(string(b), seed.Text()) {
			t.Errorf("the record tells too much: %s, %v", b, err)
		}
	}
}

// TestLoginIsLimited: a guesser waits, by address and, from many, by name.
func TestLoginIsLimited(t *testing.T) {
	d, now := newDoorman(), time.Unix(1e9, 0)
	for range userTries {
		a := somewhere.As4()
		a[3]++
		somewhere := netip.AddrFrom4(a)
		if w := d.wait(somewhere, "bob", now); w != 0 && d.late["alice"].n < 10 {
			t.Fatalf("waits %s", w)
		}
		d.failed(somewhere, "alice", now)
	}
	other := netip.MustParseAddr("203.0.113.99")
	if w := d.wait(other, "alice", now); w != userSpan {
		t.Errorf("alice waits %s", w)
	}
	if w := d.wait(other, "bob", now); w != 0 {
		t.Errorf("bob waits %s", w)
	}
	if w := d.wait(other, "alice", now.Add(userSpan)); w != 0 {
		t.Errorf("later alice waits %s", w)
	}
	for i := range 2 * maxTried {
		d.failed(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), strings.Repeat("x", i%50)+string(rune('a'+i%26))+strings.Repeat("y", i/1300), now)
	}
	if len(d.late) > maxTried {
		t.Errorf("%d names are remembered", len(d.late))
	}
}

// TestLoginsTogether: who sends his guesses all at once has no more of them.
func TestLoginsTogether(t *testing.T) {
	n := newNetwork(t)
	d := n.server.doorman
	for range hashesAtOnce {
		d.busy <- struct{}{} // so that all are there before the first is tried
	}
	var guessing sync.WaitGroup
	var tried atomic.Int32
	const guesses = 3 * limit.Burst
	for range guesses {
		guessing.Go(func() {
			_, _, err := n.server.Login(t.Context(), somewhere, "nobody", "guess", "123456")
			if !errors.Is(err, ErrTooMany) {
				tried.Add(1)
			}
			if p, ok := AsProblem(err); !ok || p.Kind != KindDenied {
				t.Errorf("refused with %v", err)
			}
		})
	}
	for range hashesAtOnce {
		<-d.busy
	}
	guessing.Wait()
	if got := tried.Load(); got < limit.Burst || got > limit.Burst+hashesAtOnce {
		t.Errorf("%d of %d guesses were tried, want %d", got, guesses, limit.Burst)
	}
}

func TestSecretFieldsExist(t *testing.T) {
	types := api.File_coord_proto.Messages()
	for _, name := range secretFields {
		m := types.ByName(name.Parent().Name())
		if m == nil || m.Fields().ByName(name.Name()) == nil {
			t.Errorf("there is no field %s", name)
		}
	}
}

func wish(target, on, proto string) NewExposure {
	at, err := ParseListen(on)
	if err != nil {
		panic(err)
	}
	return NewExposure{Exposure: Exposure{Target: target, Listen: at, Protocol: proto}}
}

func TestExposures(t *testing.T) {
	n, ctx := newNetwork(t), t.Context()
	w := wish("192.168.1.10:80", ":8080", ExposeHTTP)
	w.Allow, w.TTL = []netip.Prefix{pfx("198.51.100.0/24")}, time.Hour
	e, err := n.admin.Expose(ctx, w)
	if err != nil || e.State != ExposureListening || e.Connections != 3 || e.By != byLocal || e.User != "" || e.Until.IsZero() {
		t.Fatalf("%+v, %v", e, err)
	}
	for want, c := range map[string]NewExposure{
		"is taken: " + e.ID:  wish("192.168.1.10:80", ":8080", ExposeTCP),
		"is not HOST:PORT":   wish("192.168.1.10", ":81", ExposeTCP),
		"no address of the":  wish("127.0.0.1:22", ":81", ExposeTCP),
		"not a protocol":     wish("192.168.1.10:80", ":81", "sctp"),
		"is not a name":      wish("na/s:80", ":81", ExposeTCP),
		"login needs TLS":    {Exposure: Exposure{Target: "nas:80", Listen: w.Listen, Protocol: ExposeHTTP, Login: true}},
		"are for http":       {Exposure: Exposure{Target: "nas:80", Listen: w.Listen, Protocol: ExposeTCP, TLS: TLSSelf}},
		"PROXY protocol":     {Exposure: Exposure{Target: "nas:80", Listen: w.Listen, Protocol: ExposeUDP, Proxy: true}},
		"needs the name":     {Exposure: Exposure{Target: "nas:80", Listen: w.Listen, Protocol: ExposeHTTP, TLS: TLSACME}},
		"do not fit":         {Exposure: Exposure{Target: "nas:80", Listen: w.Listen, Protocol: ExposeHTTP, TLS: TLSGiven}, Certificate: []byte("x")},
		"not a host name":    {Exposure: Exposure{Target: "nas:80", Listen: w.Listen, Protocol: ExposeHTTP, Host: "a_b"}},
		"has host bits":      {Exposure: Exposure{Target: "nas:80", Listen: w.Listen, Protocol: ExposeTCP, Allow: []netip.Prefix{pfx("10.0.0.1/8")}}},
		"not the URL of an ": {Exposure: Exposure{Target: "nas:80", Listen: w.Listen, Protocol: ExposeHTTP, Host: "a.b", TLS: TLSACME, ACME: ACME{Directory: "http://x"}}},
	} {
		if _, err := n.admin.Expose(ctx, c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", want, err)
		} else if p, ok := AsProblem(err); !ok || p.Hint == "" {
			t.Errorf("%q: no hint", want)
		}
	}
	udp, err := n.admin.Expose(ctx, wish("nas:53", ":8080", ExposeUDP))
	if err != nil {
		t.Errorf("the same port for datagrams: %v", err)
	}
	n.published.fail = problem(KindConflict, "", "port 82 is in use by another program")
	_, err = n.admin.Expose(ctx, wish("nas:53", ":82", ExposeUDP))
	wantKind(t, err, KindConflict, "in use")
	if list, err := n.admin.Exposures(ctx); err != nil || len(list) != 2 {
		t.Errorf("%+v, %v", list, err)
	}
	if open := n.server.Exposures(); len(open) != 2 || len(open[0].Secret) != 32 || open[0].Suspended {
		t.Errorf("%+v", open)
	}
	if gone, _, err := n.admin.RemoveExposure(ctx, udp.ID); err != nil || gone.ID != udp.ID {
		t.Errorf("%+v, %v", gone, err)
	}
	n.now.add(time.Hour)
	if open := n.server.Exposures(); len(open) != 0 {
		t.Errorf("after its time there is %+v", open)
	}
	_, _, err = n.admin.RemoveExposure(ctx, ":81")
	wantKind(t, err, KindNotFound, "expose list")
	if r, err := n.admin.Revoke(ctx, e.ID); err != nil || r.Kind != "exposure" {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestExposureNames: pages beside each other at one port, by their names.
func TestExposureNames(t *testing.T) {
	n, ctx := newNetwork(t), t.Context()
	named := func(on, host, secure string) NewExposure {
		w := wish("192.168.1.10:80", on, ExposeHTTP)
		w.Host, w.TLS = host, secure
		return w
	}
	a, err := n.admin.Expose(ctx, named(":443", "a.example.org", TLSSelf))
	if err != nil {
		t.Fatal(err)
	}
	for want, w := range map[string]NewExposure{
		"another name with --host": named(":443", "a.example.org", TLSSelf),
		"say which name it is for": named(":443", "", TLSSelf),
		"add --tls":                named(":443", "b.example.org", TLSNone),
		"write --on :443":          named("203.0.113.10:443", "b.example.org", TLSSelf),
		"choose another port":      wish("192.168.1.10:80", ":443", ExposeTCP),
	} {
		_, err := n.admin.Expose(ctx, w)
		wantKind(t, err, KindConflict, want, "expose remove "+a.ID)
	}
	b, err := n.admin.Expose(ctx, named(":443", "b.example.org", TLSSelf))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.admin.Expose(ctx, named(":80", "", TLSNone)); err != nil {
		t.Fatal(err)
	}
	_, err = n.admin.Expose(ctx, named(":80", "b.example.org", TLSNone))
	wantKind(t, err, KindConflict, "answers to every name")
	_, _, err = n.admin.RemoveExposure(ctx, ":443")
	wantKind(t, err, KindConflict, "by its id")
	if gone, _, err := n.admin.RemoveExposure(ctx, "b.example.org:443"); err != nil || gone.ID != b.ID {
		t.Errorf("%+v, %v", gone, err)
	}
	c, err := n.admin.Expose(ctx, named("203.0.113.10:8443", "c.example.org", TLSSelf))
	if err != nil {
		t.Fatal(err)
	}
	if gone, _, err := n.admin.RemoveExposure(ctx, "c.example.org:8443"); err != nil || gone.ID != c.ID {
		t.Errorf("of one address: %+v, %v", gone, err)
	}
	if gone, _, err := n.admin.RemoveExposure(ctx, ":443"); err != nil || gone.ID != a.ID {
		t.Errorf("%+v, %v", gone, err)
	}
}

// TestExposureOfAnAdmin: it is the admin's, and goes when the admin does.
func TestExposureOfAnAdmin(t *testing.T) {
	n, ctx := newNetwork(t), t.Context()
	n.user("bob")
	bob := n.join(Invite{User: "bob"}, "bobs")
	if _, err := n.admin.UpdateUser(ctx, "bob", UserUpdate{Admin: new(true)}); err != nil {
		t.Fatal(err)
	}
	e, err := n.adminOf(bob).Expose(ctx, wish("192.168.1.10:80", ":8080", ExposeTCP))
	if err != nil || e.User != "bob" || e.By != "user:bob" {
		t.Fatalf("%+v, %v", e, err)
	}
	if _, err := n.admin.UpdateUser(ctx, "bob", UserUpdate{Disabled: new(true)}); err != nil {
		t.Fatal(err)
	}
	if open := n.server.Exposures(); len(open) != 1 || !open[0].Suspended {
		t.Errorf("%+v", open)
	}
	if _, err := n.admin.Revoke(ctx, "bob"); err != nil {
		t.Fatal(err)
	}
	if open := n.server.Exposures(); len(open) != 0 {
		t.Errorf("%+v", open)
	}
}

// TestExposureUnreached: who publishes what nobody would reach is told so.
func TestExposureUnreached(t *testing.T) {
	l, _, _ := newHubLab(t)
	for at, c := range map[string]struct{ target, problem string }{
		":81": {"10.77.0.1:80", "no machine has 10.77.0.1"}, ":82": {"192.168.1.201:80", "refused by policy"},
		":83": {"gw:80", "refused by policy"}, ":84": {"a-name-of-the-lan:80", ""},
	} {
		e, err := l.admin.Expose(t.Context(), wish(c.target, at, ExposeTCP))
		if err != nil || c.problem == "" && e.Problem != "" || !strings.Contains(e.Problem, c.problem) {
			t.Errorf("%s: %q, %v", c.target, e.Problem, err)
		}
	}
	page := wish("192.168.1.201:80", ":85", ExposeHTTP)
	page.Login, page.TLS = true, TLSSelf
	if e, err := l.admin.Expose(t.Context(), page); err != nil || e.Problem != "" {
		t.Errorf("for whoever logs in: %q, %v", e.Problem, err)
	}
	l.apply("hosts: {nas: 192.168.1.201}\nrules:\n  - {name: all, src: \"*\", dst: \"*\"}\n")
	list, err := l.admin.Exposures(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if e.Target == "192.168.1.201:80" && e.Problem != "" {
			t.Errorf("allowed, and %q", e.Problem)
		}
	}
}

// TestTally: what a revocation ended of guests is in its answer.
func TestTally(t *testing.T) {
	n, ctx := newNetwork(t), t.Context()
	n.join(Invite{Role: RoleRelay}, "vps")
	n.user("alice")
	n.ended.Store(2)
	r, err := n.admin.Revoke(ctx, "alice")
	if err != nil || len(r.Nodes) != 1 || r.Nodes[0] != (Ack{Node: "vps", Online: true, Applied: true, FlowsCut: 2}) {
		t.Errorf("%+v, %v", r, err)
	}
}

func FuzzParseListen(f *testing.F) {
	for _, s := range []string{":8080", "203.0.113.10:80", "[2001:db8::1]:443", ":0", "x:1", "[fe80::1%eth0]:1", ":99999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		at, err := ParseListen(s)
		if err != nil {
			return
		}
		if again, err := ParseListen(ListenText(at)); err != nil || again.Port() != at.Port() || again.Addr().IsUnspecified() != at.Addr().IsUnspecified() {
			t.Errorf("%q is %s, and that %s, %v", s, at, again, err)
		}
	})
}

func FuzzCheckTarget(f *testing.F) {
	for _, s := range []string{"192.168.1.10:80", "nas:22", "[fd00::1]:22", "nas", ":80", "nas:0", "169.254.169.254:80", "::ffff:127.0.0.1:22", "[::ffff:127.0.0.1]:22"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		kept, err := checkTarget(s)
		if err != nil {
			return
		}
		if again, err := checkTarget(kept); err != nil || again != kept {
			t.Errorf("%q is kept as %q, and that as %q, %v", s, kept, again, err)
		}
		if strings.Contains(kept, "127.0.0.1") && strings.HasPrefix(kept, "127.") {
			t.Errorf("%q is taken", s)
		}
	})
}
