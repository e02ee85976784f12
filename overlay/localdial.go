package overlay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"overlayd/overlay/splice"
)

// The parts of a Dial on the local API: an HTTP request that asks for another
// protocol on the same connection, so that nothing but the bytes passes it then.
const (
	dialPath     = "/dial"
	dialProtocol = "overlayd-dial"
	dialHeader   = "Overlayd-Dial" // in the answer: the number of the connection
)

const (
	// mostDials bounds the connections of `overlayd nc` and ssh at once; each
	// takes two or three descriptors.
	mostDials = 1024
	// rememberedDials is how many are remembered that are over: who asks does so
	// at once.
	rememberedDials = 256
	// settleDial is how long the answer about a connection that seems to go on
	// waits for its end.
	settleDial = 100 * time.Millisecond
)

// localDials are the connections that programs on this machine have by the
// socket.
type localDials struct {
	n       *Node
	running sync.WaitGroup

	mu     sync.Mutex // guards what follows
	last   uint64
	open   map[uint64]*localDial
	ended  [rememberedDials]*localDial
	oldest int
}

// localDial is one of them.
type localDial struct {
	id   uint64
	done chan struct{} // closed when it is over
	err  error         // why it was torn; to read when done is closed
}

func newLocalDials(n *Node) *localDials { return &localDials{n: n, open: map[uint64]*localDial{}} }

// fateJSON is what is told of a connection, and why there is none.
type fateJSON struct {
	Over    bool       `json:"over"`
	Code    int        `json:"code,omitempty"` // 0: it ended as it should
	Message string     `json:"message,omitempty"`
	Hint    string     `json:"hint,omitempty"`
	Reason  DialReason `json:"reason,omitempty"`
	Target  string     `json:"target,omitempty"`
}

func fateOf(err error) fateJSON {
	j := fateJSON{Over: true}
	if err != nil {
		f := AsFault(err)
		j.Code, j.Message, j.Hint = f.Code, f.Message, f.Hint
	}
	if d, ok := errors.AsType[*DialError](err); ok {
		j.Reason, j.Target = d.Reason, d.Target
	}
	return j
}

// ServeHTTP answers a request for a connection, and what became of one.
func (d *localDials) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch q := r.URL.Query(); {
	case r.Method == http.MethodGet:
		d.tell(w, r)
	case r.Method != http.MethodPost || r.Header.Get("Upgrade") != dialProtocol:
		http.Error(w, "ask for the protocol "+dialProtocol, http.StatusUpgradeRequired)
	default:
		d.serve(w, r, q.Get("network"), q.Get("address"))
	}
}

// begin takes note of a new one; nil: there are too many.
func (d *localDials) begin() *localDial {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.open) >= mostDials {
		return nil
	}
	d.last++
	one := &localDial{id: d.last, done: make(chan struct{})}
	d.open[one.id] = one
	return one
}

func (d *localDials) end(one *localDial, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	one.err = err
	close(one.done)
	delete(d.open, one.id)
	d.ended[d.oldest] = one
	d.oldest = (d.oldest + 1) % len(d.ended)
}

func (d *localDials) find(id uint64) *localDial {
	d.mu.Lock()
	defer d.mu.Unlock()
	if one := d.open[id]; one != nil {
		return one
	}
	for _, one := range d.ended {
		if one != nil && one.id == id {
			return one
		}
	}
	return nil
}

// tell says what became of a connection.
func (d *localDials) tell(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.ParseUint(r.URL.Query().Get("id"), 10, 64)
	one := d.find(id)
	if err != nil || one == nil {
		http.NotFound(w, r)
		return
	}
	var j fateJSON
	select {
	case <-one.done:
		j = fateOf(one.err)
	case <-r.Context().Done():
	case <-time.After(settleDial):
	}
	answerJSON(w, http.StatusOK, j)
}

func answerJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v) // fails when the caller has gone
}

// serve makes the connection and carries it until it is over.
func (d *localDials) serve(w http.ResponseWriter, r *http.Request, network, address string) {
	refuse := func(err error) { answerJSON(w, http.StatusBadGateway, fateOf(err)) }
	one := d.begin()
	if one == nil {
		refuse(fault(ExitConflict, "end some of them", "there are %d connections by this daemon already", mostDials))
		return
	}
	d.running.Add(1)
	defer d.running.Done()
	var failed error
	defer func() { d.end(one, failed) }()

	ctx := r.Context() // ends with the caller, until it is hijacked
	remote, err := d.n.DialContext(ctx, network, address)
	if err != nil {
		refuse(err)
		return
	}
	defer remote.Close()
	caller, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		refuse(fmt.Errorf("take over the connection: %w", err))
		return
	}
	defer caller.Close()
	_, err = fmt.Fprintf(caller, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n%s: %d\r\n\r\n", dialProtocol, dialHeader, one.id)
	if err != nil || buffered.Reader.Buffered() > 0 { // nobody speaks before the answer
		return
	}
	began := time.Now()
	proto, _ := protocolOf(network) // DialContext took it
	if proto == "udp" {
		err = carryDatagrams(ctx, caller, remote)
	} else {
		err = splice.Join(ctx, caller, remote).Err
	}
	failed = d.n.explainEnd(proto, address, began, remote, err)
}

// explainEnd says why a connection that was there was torn.
func (n *Node) explainEnd(network, address string, began time.Time, c net.Conn, err error) error {
	if err == nil {
		return nil
	}
	if at, perr := netip.ParseAddrPort(c.RemoteAddr().String()); perr == nil && n.guard.refused(network, at, began) {
		v := n.look()
		e := &DialError{Reason: ReasonPolicy, Target: address, err: err, proto: network}
		if v.plan != nil && v.m != nil {
			e.Via, _ = v.carrierOf(at.Addr())
		}
		return e
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED): // a datagram's answer
		return &DialError{Reason: ReasonRefused, Target: address, err: err}
	case errors.Is(err, syscall.ECONNRESET):
		return fault(ExitUnreachable, "look at `overlayd status`: the host, or its gateway, ended it", "the connection to %.200s was reset", address)
	case errors.Is(err, syscall.EPIPE), errors.Is(err, context.Canceled):
		return fault(ExitUnreachable, "", "the connection to %.200s has ended", address)
	}
	return fault(ExitUnreachable, "look at `overlayd status`", "the connection to %.200s was lost: %v", address, err)
}
