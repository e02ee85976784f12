package relay

import (
	"context"
	"io"
	"log/slog"
	"net/netip"
	"time"

	"overlayd/overlay/key"
)

type ServerOptions struct {
	Listen                             netip.AddrPort
	Secret                             key.Secret
	Log                                *slog.Logger
	Shards                             int
	MaxSessions, MaxSessionsPerNetwork int
}
type Server struct{}

func NewServer(ServerOptions) (*Server, error)    { panic("next commit") }
func (s *Server) Run(ctx context.Context) error   { panic("next commit") }
func (s *Server) LocalAddr() netip.AddrPort       { panic("next commit") }
func (s *Server) Counters() map[string]uint64     { panic("next commit") }
func (s *Server) Sessions() int                   { panic("next commit") }
func (s *Server) Disconnect(n Network, l Label)   { panic("next commit") }
func (s *Server) Attach(n Network, l Label) *Port { panic("next commit") }
func (s *Server) Close()                          { panic("next commit") }

type Port struct{}

func (p *Port) Send(dst Label, bufs [][]byte) { panic("next commit") }
func (p *Port) Receive(bufs [][]byte, sizes []int, src []Label) (n int, err error) {
	panic("next commit")
}
func (p *Port) Close() { panic("next commit") }

type SessionOptions struct {
	Ticket []byte
	Key    key.Secret
	Rand   io.Reader
}
type Session struct{}
type State int

const (
	Attaching State = iota
	Up
	Lost
)

func (s State) String() string { return [...]string{"attaching", "up", "lost"}[s] }

type SessionStatus struct {
	State    State
	RTT      time.Duration
	Observed netip.AddrPort
	LastEcho time.Time
	BootID   uint64
}

func NewSession(SessionOptions) *Session                             { panic("next commit") }
func (s *Session) Handle(now time.Time, frame []byte) (reply []byte) { panic("next commit") }
func (s *Session) Tick(now time.Time) (frame []byte, next time.Time) { panic("next commit") }
func (s *Session) Sent(now time.Time)                                { panic("next commit") }
func (s *Session) Heard(now time.Time)                               { panic("next commit") }
func (s *Session) Kick(now time.Time)                                { panic("next commit") }
func (s *Session) Renew(ticket []byte, k key.Secret)                 { panic("next commit") }
func (s *Session) Status() SessionStatus                             { panic("next commit") }
