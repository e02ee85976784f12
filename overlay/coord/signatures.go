package coord

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net/http"
	"net/netip"

	"overlayd/overlay/key"
)

type Server struct{}

func NewServer(o ServerOptions) (*Server, error)                              { panic("unwritten") }
func (s *Server) Handler() http.Handler                                       { panic("unwritten") }
func (s *Server) AdminHandler() http.Handler                                  { panic("unwritten") }
func (s *Server) Run(ctx context.Context) error                               { panic("unwritten") }
func (s *Server) Invite(ctx context.Context, i Invite) (Link, error)          { panic("unwritten") }
func (s *Server) Network() NetworkID                                          { panic("unwritten") }
func (s *Server) Overlay() netip.Prefix                                       { panic("unwritten") }
func SelfSigned(k key.Machine, host string) (tls.Certificate, key.Pin, error) { panic("unwritten") }
func TLSConfig(cert tls.Certificate) *tls.Config                              { panic("unwritten") }
func NewHTTPServer(h http.Handler, cert tls.Certificate, log *slog.Logger) *http.Server {
	panic("unwritten")
}
func OpenBolt(path string) (Store, error) { panic("unwritten") }

type Client struct{}

func NewClient(o ClientOptions) (*Client, error)                                { panic("unwritten") }
func (c *Client) Enroll(ctx context.Context, r EnrollRequest) (Enrolled, error) { panic("unwritten") }
func (c *Client) Follow(ctx context.Context, o FollowOptions) error             { panic("unwritten") }

func (m *Map) Append(b []byte) []byte { panic("unwritten") }
func ParseMap(b []byte) (*Map, error) { panic("unwritten") }

func (a *Admin) Invite(ctx context.Context, i Invite) (Link, error) { panic("unwritten") }
func (a *Admin) Invites(ctx context.Context) ([]InviteInfo, error)  { panic("unwritten") }
func (a *Admin) RevokeInvite(ctx context.Context, id string) error  { panic("unwritten") }
func (a *Admin) Nodes(ctx context.Context) ([]NodeInfo, error)      { panic("unwritten") }
func (a *Admin) RenameNode(ctx context.Context, node, name string) (NodeInfo, error) {
	panic("unwritten")
}
func (a *Admin) RemoveNode(ctx context.Context, node string) (NodeInfo, error) { panic("unwritten") }
func (a *Admin) Routes(ctx context.Context) ([]RouteInfo, error)               { panic("unwritten") }
func (a *Admin) ApproveRoute(ctx context.Context, node string, p netip.Prefix) (RouteInfo, error) {
	panic("unwritten")
}
func (a *Admin) WithdrawRoute(ctx context.Context, node string, p netip.Prefix) (RouteInfo, error) {
	panic("unwritten")
}
