package overlay

import (
	"log/slog"
	"net"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"overlayd/overlay/coord"
	"overlayd/overlay/key"
)

// TestJoinAgain: a link is for machines that are no members; one that was
// removed comes back with it, and one that was not keeps what it is.
func TestJoinAgain(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("this test needs root, and CI has to run it")
		}
		t.Skip("SKIPPED: marked connections need root")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cert, pin, err := coord.SelfSigned(key.NewMachine(), "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	store, err := coord.OpenBolt(filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	server, err := coord.NewServer(coord.ServerOptions{
		Store: store, Log: slog.New(slog.DiscardHandler), Overlay: netip.MustParsePrefix("172.18.0.0/24"),
		Endpoint: ln.Addr().String(), Pin: pin,
	})
	if err != nil {
		t.Fatal(err)
	}
	web := coord.NewHTTPServer(server.Handler(), cert, slog.New(slog.DiscardHandler))
	served := make(chan struct{})
	go func() {
		defer close(served)
		web.ServeTLS(ln, "", "")
	}()
	defer func() { web.Close(); <-served }()

	dir := t.TempDir()
	join := func(link string) (*identity, error) {
		n, err := New(Options{StateDir: dir, Link: link, Name: "laptop", Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		return n.joiner().join(t.Context())
	}
	invite := func() string {
		l, err := server.Invite(t.Context(), coord.Invite{})
		if err != nil {
			t.Fatal(err)
		}
		return l.Encode()
	}
	first := invite()
	was, err := join(first)
	if err != nil {
		t.Fatal(err)
	}
	if id, err := join(first); err != nil || id.NodeID != was.NodeID {
		t.Errorf("a member with its old link: %v", err)
	}
	admin := httptest.NewServer(server.AdminHandler())
	defer admin.Close()
	if _, err := coord.NewAdmin(admin.Client(), admin.URL).RemoveNode(t.Context(), was.NodeID); err != nil {
		t.Fatal(err)
	}
	if _, err := join(first); AsFault(err).Code != ExitDenied {
		t.Errorf("a removed machine with its old link: %v", err)
	}
	if id, err := join(""); err != nil || id.NodeID != was.NodeID {
		t.Errorf("the identity is lost: %v", err)
	}
	if id, err := join(invite()); err != nil || id.NodeID == was.NodeID {
		t.Errorf("a removed machine with a new link: %v", err)
	}
}
