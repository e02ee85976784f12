package jump

import (
	"context"
	"crypto/subtle"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"overlayd/internal/limit"
	"overlayd/overlay/splice"
)

const (
	// loginGrace is for a person with a key that asks for a touch, on a slow line.
	loginGrace = 30 * time.Second
	// maxTries is how many keys a client may offer: agents hold a handful.
	maxTries = 6
	// maxUnproved connections wait for their login, of all; maxUnprovedOf of one
	// source: behind one address may be an office.
	maxUnproved   = 64
	maxUnprovedOf = 10
	// maxSessions bounds memory: about 100 KB each, without channels. maxSessionsOf
	// one user, so that nobody keeps the others out.
	maxSessions   = 512
	maxSessionsOf = 32
	// maxChannels of one user: an IDE with many forwards needs some tens. Of each, 2
	// MiB wait at most for a target that does not read.
	maxChannels = 128
	// aliveEvery is how often a client is asked whether it is there; it has as
	// long to answer. It also keeps a NAT's mapping.
	aliveEvery = 30 * time.Second
)

// Guest is who has logged in, and from where.
type Guest struct {
	ID     string // of the user
	Name   string
	Client netip.AddrPort
}

// Options say what a Server serves.
type Options struct {
	HostKey ssh.Signer // required
	// User returns whose a key is, in SSH's form, of users that may log in.
	User func(key []byte) (id, name string, ok bool) // required
	// Dial connects to a target for a guest. An error that is fs.ErrPermission
	// says that policy refuses it.
	Dial func(ctx context.Context, g Guest, host string, port uint16) (net.Conn, error) // required
	// Refused is told of each login that failed; may be nil.
	Refused func(name string, client netip.AddrPort, why string)
	Log     *slog.Logger     // nil: slog.Default
	Now     func() time.Time // nil: time.Now
}

// Server is a jump host.
type Server struct {
	o        Options // set by New, then read-only
	failures *limit.Failures

	mu       sync.Mutex // guards what follows
	sessions map[*session]bool
	users    map[string]*load // by id; of those who have a session
	unproved map[netip.Prefix]int
	waiting  int // the sum of unproved
}

// load is what one user has open.
type load struct{ sessions, channels int }

// New checks the options.
func New(o Options) (*Server, error) {
	if o.HostKey == nil || o.User == nil || o.Dial == nil {
		return nil, errors.New("a jump host needs a key, users and a way to dial")
	}
	if o.Refused == nil {
		o.Refused = func(string, netip.AddrPort, string) {}
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Server{o: o, failures: limit.NewFailures(), sessions: map[*session]bool{}, users: map[string]*load{}, unproved: map[netip.Prefix]int{}}, nil
}

// Serve serves connections until ctx ends, and returns when all have ended. It
// closes the listener.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return splice.Accept(ctx, ln, s.o.Log, func(c net.Conn) {
		running.Go(func() { s.serve(ctx, c) })
	})
}

// clientOf returns where a connection comes from.
func clientOf(c net.Conn) netip.AddrPort {
	at, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}

// serve is the life of one connection.
func (s *Server) serve(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	client := clientOf(conn)
	if s.failures.Wait(client.Addr(), s.o.Now()) > 0 || !s.enter(client) {
		return
	}
	se, chans, reqs, err := s.handshake(ctx, cancel, conn, client)
	s.leave(client)
	if err != nil {
		return
	}
	if !s.add(se) {
		s.o.Log.Warn("ssh sessions are full", "most", maxSessions, "of_one", maxSessionsOf, "user", se.guest.Name, "addr", client)
		return
	}
	defer s.drop(se)
	// The key may have been taken away between its check and add.
	if !s.holds(se) {
		return
	}
	s.o.Log.Info("ssh login", "user", se.guest.Name, "addr", client)
	se.run(ctx, chans, reqs)
	s.o.Log.Info("ssh logout", "user", se.guest.Name, "addr", client)
}

// enter counts a connection that has not logged in.
func (s *Server) enter(client netip.AddrPort) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	src := limit.Source(client.Addr())
	if s.waiting >= maxUnproved || s.unproved[src] >= maxUnprovedOf {
		return false
	}
	s.waiting++
	s.unproved[src]++
	return true
}

func (s *Server) leave(client netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	src := limit.Source(client.Addr())
	s.waiting--
	if s.unproved[src]--; s.unproved[src] == 0 {
		delete(s.unproved, src)
	}
}

func (s *Server) add(se *session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.full(se.guest.ID) {
		return false
	}
	s.sessions[se] = true
	if s.users[se.guest.ID] == nil {
		s.users[se.guest.ID] = &load{}
	}
	s.users[se.guest.ID].sessions++
	return true
}

// full reports whether there is no room for another session of a user; mu is held.
func (s *Server) full(user string) bool {
	l := s.users[user]
	return len(s.sessions) >= maxSessions || l != nil && l.sessions >= maxSessionsOf
}

// drop forgets a session, whose channels have ended.
func (s *Server) drop(se *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, se)
	if l := s.users[se.guest.ID]; l.sessions > 1 {
		l.sessions--
	} else {
		delete(s.users, se.guest.ID)
	}
}

// open counts a channel of a session, unless it is one too many for its user.
func (s *Server) open(se *session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.users[se.guest.ID]
	if l.channels >= maxChannels {
		return false
	}
	l.channels++
	return true
}

func (s *Server) close(se *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users[se.guest.ID].channels--
}

// holds reports whether a session's key is still its user's.
func (s *Server) holds(se *session) bool {
	id, _, ok := s.o.User(se.key)
	return ok && id == se.guest.ID
}

// Heed ends the sessions whose key is good no more, and returns how many.
func (s *Server) Heed() (ended int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for se := range s.sessions {
		if !s.holds(se) {
			se.end()
			ended++
		}
	}
	return ended
}

// Sessions returns how many there are.
func (s *Server) Sessions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)
}

// config is what a connection may log in with. Whose key was proved is written
// to se when the client has shown that it holds it.
func (s *Server) config() *ssh.ServerConfig {
	c := &ssh.ServerConfig{
		Config: ssh.Config{
			KeyExchanges: []string{ssh.KeyExchangeMLKEM768X25519, ssh.KeyExchangeCurve25519},
			Ciphers:      []string{ssh.CipherChaCha20Poly1305, ssh.CipherAES256GCM, ssh.CipherAES128GCM},
			MACs:         []string{ssh.HMACSHA256ETM, ssh.HMACSHA512ETM},
		},
		PublicKeyAuthAlgorithms: []string{
			ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256,
			ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256,
		},
		MaxAuthTries:  maxTries,
		ServerVersion: "SSH-2.0-overlayd",
		PublicKeyCallback: func(conn ssh.ConnMetadata, k ssh.PublicKey) (*ssh.Permissions, error) {
			id, name, ok := s.o.User(k.Marshal())
			if !ok {
				return nil, errors.New("nobody's key")
			}
			if subtle.ConstantTimeCompare([]byte(name), []byte(conn.User())) != 1 {
				return nil, errors.New("another user's key")
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.full(id) {
				return nil, &ssh.BannerError{Err: errFull, Message: "overlayd: " + errFull.Error() + "; end one of them, or try again later\n"}
			}
			return &ssh.Permissions{Extensions: map[string]string{extID: id, extKey: string(k.Marshal())}}, nil
		},
	}
	c.AddHostKey(s.o.HostKey)
	return c
}

// errFull says to who proves to be a user why he is not let in.
var errFull = errors.New("there are too many sessions here already")

// What a login leaves behind: package ssh hands on only strings.
const (
	extID  = "overlayd-user"
	extKey = "overlayd-key"
)

// handshake lets a client log in, or closes the connection.
func (s *Server) handshake(ctx context.Context, cancel func(), conn net.Conn, client netip.AddrPort) (*session, <-chan ssh.NewChannel, <-chan *ssh.Request, error) {
	_ = conn.SetDeadline(s.o.Now().Add(loginGrace)) // fails on a closed connection only
	name, full := "", false
	c := s.config()
	c.AuthLogCallback = func(m ssh.ConnMetadata, _ string, err error) {
		name, full = m.User(), full || errors.Is(err, errFull)
	}
	sc, chans, reqs, err := ssh.NewServerConn(conn, c)
	if err != nil {
		if full {
			s.o.Log.Warn("ssh sessions are full", "most", maxSessions, "of_one", maxSessionsOf, "user", plain(name), "addr", client)
		} else if ctx.Err() == nil {
			s.failures.Add(client.Addr(), s.o.Now())
			s.o.Log.Info("ssh login refused", "user", plain(name), "addr", client, "err", plain(err.Error()))
			if name != "" { // else nobody tried to log in
				s.o.Refused(plain(name), client, "no key of that user")
			}
		}
		return nil, nil, nil, err
	}
	_ = conn.SetDeadline(time.Time{})
	x := sc.Permissions.Extensions
	return &session{
		s: s, conn: sc, end: cancel, key: []byte(x[extKey]),
		guest: Guest{ID: x[extID], Name: sc.User(), Client: client},
	}, chans, reqs, nil
}

// plain makes what a stranger sent fit for a log.
func plain(s string) string {
	const most = 64
	b := []byte(s[:min(len(s), most)])
	for i, c := range b {
		if c < ' ' || c >= 0x7f {
			b[i] = '?'
		}
	}
	return string(b)
}
