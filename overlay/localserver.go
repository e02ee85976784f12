package overlay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"connectrpc.com/connect"

	"overlayd/overlay/coord"
	"overlayd/overlay/local"
)

// socketMode lets root and the socket's group in: see socketGroup.
const socketMode = 0o660

// localServer serves the local API on the Unix socket.
type localServer struct {
	path string
	http *http.Server
	done chan struct{} // closed when Serve has returned
	dial *localDials
}

// listenLocal opens the socket and serves on it. A socket that a dead daemon
// left behind is replaced; one that answers is a conflict. Calls end with ctx.
func (n *Node) listenLocal(ctx context.Context) (*localServer, error) {
	path := n.o.Socket
	mode := fs.FileMode(0o755)
	if n.o.Userspace {
		mode = 0o700 // a user's own
	}
	if err := os.MkdirAll(filepath.Dir(path), mode); err != nil {
		return nil, permissionFault(err, "make directory of socket %s", path)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fault(ExitConflict, "see it with `overlayd status`; stop it with `overlayd down`, or choose another --socket",
			"another overlayd answers on %s", path)
	}
	if fi, err := os.Lstat(path); err == nil {
		if fi.Mode()&fs.ModeSocket == 0 {
			return nil, fault(ExitConflict, "move it away, or choose another --socket", "%s is not a socket", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, permissionFault(err, "replace socket %s", path)
		}
	}
	ln, err := listenPrivate(path)
	if err != nil {
		return nil, permissionFault(err, "listen on %s", path)
	}
	if !n.o.Userspace {
		if err := openToGroup(path); err != nil {
			ln.Close()
			return nil, err
		}
	}

	mux := http.NewServeMux()
	mux.Handle(local.NewLocalHandler(localService{n}, connect.WithCompression("gzip", nil, nil))) // nothing is far: a gzip writer takes a megabyte
	dials := newLocalDials(n)
	mux.Handle(dialPath, dials)
	if n.hub != nil && n.hub.coord != nil {
		mux.Handle("/", n.hub.coord.AdminHandler())
	} else {
		mux.Handle(n.coord.AdminProxy())
	}
	s := &localServer{
		path: path,
		http: &http.Server{
			Handler:           mux,
			ReadHeaderTimeout: 5 * time.Second,
			BaseContext:       func(net.Listener) context.Context { return ctx },
		},
		done: make(chan struct{}),
		dial: dials,
	}
	go func() {
		defer close(s.done)
		if err := s.http.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			n.log.Error("local API stopped", "err", err)
		}
	}()
	return s, nil
}

// close waits for the calls, whose contexts have ended by now, and removes the
// socket.
func (s *localServer) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := s.http.Shutdown(ctx); err != nil {
		s.http.Close()
	}
	<-s.done
	s.dial.running.Wait()
	os.Remove(s.path) // already gone: closing a Unix listener unlinks it
}

// openToGroup gives the socket to group overlayd, when there is one.
func openToGroup(path string) error {
	if err := os.Chmod(path, socketMode); err != nil {
		return fmt.Errorf("open socket %s to its group: %w", path, err)
	}
	gid, ok := socketGroup()
	if !ok {
		return nil
	}
	if err := os.Chown(path, -1, gid); err != nil {
		return fmt.Errorf("give socket %s to its group: %w", path, err)
	}
	return nil
}

// localService answers the local API.
type localService struct{ n *Node }

var _ local.LocalHandler = localService{}

func (s localService) Status(context.Context, *connect.Request[local.StatusRequest]) (*connect.Response[local.StatusResponse], error) {
	b, err := json.Marshal(s.n.Status())
	if err != nil {
		return nil, fmt.Errorf("encode status: %w", err)
	}
	return connect.NewResponse(&local.StatusResponse{Json: b}), nil
}

func (s localService) Plan(context.Context, *connect.Request[local.PlanRequest]) (*connect.Response[local.PlanResponse], error) {
	v := s.n.look()
	if v.plan == nil {
		return nil, faultOut(fault(ExitNotJoined, statusHint, "no map has come from the coordinator yet"))
	}
	return connect.NewResponse(&local.PlanResponse{Text: v.plan.String()}), nil
}

func (s localService) Down(context.Context, *connect.Request[local.DownRequest]) (*connect.Response[local.DownResponse], error) {
	s.n.log.Info("asked to stop")
	s.n.Stop() // the server goes last, and lets this answer out
	return connect.NewResponse(&local.DownResponse{}), nil
}

// errStarting is the answer while there is no tunnel yet.
var errStarting = fault(ExitNotJoined, statusHint, "the node is still starting")

// errStopped is the answer when Run has returned.
var errStopped = fault(ExitNotRunning, "start it again", "the node was stopped")

const statusHint = "look at `overlayd status`"

func (s localService) Netcheck(ctx context.Context, _ *connect.Request[local.NetcheckRequest]) (*connect.Response[local.NetcheckResponse], error) {
	c, err := s.n.Netcheck(ctx)
	if err != nil {
		return nil, faultOut(err)
	}
	b, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode netcheck: %w", err)
	}
	return connect.NewResponse(&local.NetcheckResponse{Json: b}), nil
}

func (s localService) Audit(ctx context.Context, req *connect.Request[local.AuditRequest], stream *connect.ServerStream[local.AuditResponse]) error {
	q := AuditQuery{Follow: req.Msg.Follow, User: req.Msg.User, Host: req.Msg.Host, Denied: req.Msg.Denied}
	if ns := req.Msg.SinceNs; ns != 0 {
		q.Since = time.Unix(0, ns)
	}
	if err := stream.Send(&local.AuditResponse{}); err != nil { // the caller sees that it is answered, though nothing may come for long
		return err
	}
	return s.n.audit(ctx, q, func(line []byte) error { return stream.Send(&local.AuditResponse{Line: line}) })
}

func (s localService) Whois(_ context.Context, req *connect.Request[local.WhoisRequest]) (*connect.Response[local.WhoisResponse], error) {
	w, err := s.n.whois(req.Msg.Target, time.Now())
	if err != nil {
		return nil, faultOut(err)
	}
	b, err := json.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("encode whois: %w", err)
	}
	return connect.NewResponse(&local.WhoisResponse{Json: b}), nil
}

func (s localService) Ping(ctx context.Context, req *connect.Request[local.PingRequest], stream *connect.ServerStream[local.PingResponse]) error {
	v := s.n.look()
	if p := barred(v.m); p != nil {
		return coord.Refusal(p)
	}
	if v.m == nil || v.live == nil || v.plan == nil {
		return faultOut(errStarting)
	}
	target, err := pingTarget(v.m, req.Msg.Target)
	if err != nil {
		return faultOut(err)
	}
	last, err := v.pathTo(target)
	if err != nil {
		return faultOut(err)
	}
	path := func() PongPath {
		if v := s.n.look(); v.m != nil && v.live != nil && v.plan != nil {
			if p, err := v.pathTo(target); err == nil {
				last = p
			}
		}
		return last
	}
	interval := time.Duration(req.Msg.IntervalMs) * time.Millisecond
	c, err := v.live.listenICMP()
	if err != nil {
		return err
	}
	return ping(ctx, c, target, int(req.Msg.Count), interval, path, func(p Pong) error {
		out := &local.PingResponse{
			Seq: uint32(p.Seq), Addr: p.Addr.String(), Path: p.Path.String(),
			Direct: p.Path.Direct, Kind: p.Path.Kind, Transport: p.Path.Transport, Relay: p.Path.Relay,
			Endpoint: p.Path.Endpoint, Via: p.Path.Via, Reason: p.Path.Reason, RefusedBy: nameOf(v.m, p.Refused),
		}
		if !p.Lost {
			ns := p.RTT.Nanoseconds()
			out.RttNs = &ns
		}
		return stream.Send(out)
	})
}
