package overlay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"time"

	"overlayd/overlay/coord"
	"overlayd/overlay/key"
)

// joiner is the first step of every start: with a link a machine becomes a
// member, and without one it has to be one already.
type joiner struct {
	o      Options
	log    *slog.Logger
	dir    stateDir
	offer  *coord.RelayOffer // of a relay more; nil: none
	client func(*identity) (*coord.Client, error)
}

// join returns the node's identity, and enrols it first if it has none. On a
// refusal everything is as it was.
func (j joiner) join(ctx context.Context) (*identity, error) {
	id, err := j.dir.identity()
	if err != nil {
		return nil, err
	}
	if j.o.Link == "" {
		if id == nil || !id.joined() {
			return nil, fault(ExitNotJoined,
				"make an invite on the relay with `overlayd invite` and give its link to this command",
				"this machine has not joined a network")
		}
		return j.rejoin(id)
	}
	link, err := coord.ParseLink(j.o.Link)
	if err != nil {
		return nil, err
	}
	if id != nil && id.joined() {
		if id.Pin != link.Pin || id.Pin.IsZero() && id.Endpoint != link.Endpoint {
			return nil, fault(ExitConflict,
				"run it without the link to use that network, or choose another --state-dir for this one",
				"this machine is already a member of another network, %s", networkOf(id.Endpoint))
		}
		if _, err := os.Stat(j.dir.file(mapFile)); errors.Is(err, fs.ErrNotExist) {
			return j.joinAgain(ctx, id, link)
		}
		return j.joinedWith(ctx, id, link)
	}
	fresh := id == nil
	if fresh {
		id = &identity{Machine: key.NewMachine(), WireGuard: key.NewPrivate()}
	}
	// The keys are saved before they are sent: should the answer get lost,
	// the next try is the same node and the invite still good.
	if err := j.dir.saveIdentity(id); err != nil {
		return nil, err
	}
	if err := j.enroll(ctx, id, link); err != nil {
		if p, ok := coord.AsProblem(err); fresh && ok && p.Kind != coord.KindUnreachable && p.Kind != coord.KindInternal {
			j.dir.forget(identityFile) // refused: these keys will never be anybody's
		}
		return nil, err
	}
	return id, nil
}

// joinedWith is the start, with a link, of a node that is a member: the link is
// for its key, if that is due, and else not used.
func (j joiner) joinedWith(ctx context.Context, id *identity, link coord.Link) (*identity, error) {
	m, err := j.dir.cachedMap()
	if err != nil {
		return nil, err
	}
	if !dueForRenewal(m, time.Now()) {
		j.log.Info("already joined, so the link is not used", "name", id.Name, "coordinator", id.Endpoint)
		return j.rejoin(id)
	}
	c, err := j.client(id)
	if err != nil {
		return nil, err
	}
	if err := renewAt(ctx, c, id, id.WireGuard, link); err != nil {
		return nil, err
	}
	j.log.Info("the key was renewed", "name", id.Name)
	return j.rejoin(id)
}

// joinAgain is the start, with a link, of a node without a map: it may have been
// removed, and the link is then for its return. A node that still is a member
// stays what it is, and the link keeps its use.
func (j joiner) joinAgain(ctx context.Context, id *identity, link coord.Link) (*identity, error) {
	next := *id
	err := j.enroll(ctx, &next, link)
	if p, ok := coord.AsProblem(err); ok && p.Kind == coord.KindUnreachable {
		return j.rejoin(id)
	}
	if err != nil {
		return nil, err
	}
	return j.rejoin(&next)
}

// rejoin is the start of a node that is a member already.
func (j joiner) rejoin(id *identity) (*identity, error) {
	if id.Role != j.o.Role {
		return nil, fault(ExitConflict,
			fmt.Sprintf("start it with `%s`; to change its role, remove it with `overlayd nodes remove %s` and invite it anew",
				verbOf(id.Role), id.Name),
			"this machine joined as %s, not as %s", id.Role, j.o.Role)
	}
	if j.o.Advertise != nil {
		if err := j.checkOverlaps(j.o.Advertise); err != nil {
			return nil, err
		}
		id.Advertise = j.o.Advertise
		return id, j.dir.saveIdentity(id)
	}
	return id, nil
}

// checkOverlaps refuses prefixes that the coordinator would refuse: those that
// overlap the overlay, as far as it is known here.
func (j joiner) checkOverlaps(prefixes []netip.Prefix) error {
	m, err := j.dir.cachedMap()
	if err != nil || m == nil {
		return err
	}
	for _, p := range prefixes {
		if p.Overlaps(m.Overlay) {
			return fault(ExitUsage, "advertise the networks behind this gateway, e.g. 192.168.1.0/24",
				"advertise %s: it overlaps the overlay %s", p, m.Overlay)
		}
	}
	return nil
}

func verbOf(r coord.Role) string {
	switch r {
	case coord.RoleGateway:
		return "overlayd gateway"
	case coord.RoleRelay:
		return "overlayd relay"
	}
	return "overlayd up"
}

func (j joiner) enroll(ctx context.Context, id *identity, link coord.Link) error {
	id.Endpoint, id.Pin = link.Endpoint, link.Pin
	c, err := j.client(id)
	if err != nil {
		return err
	}
	j.log.Info("joining", "coordinator", link.Endpoint)
	in, err := c.Enroll(ctx, coord.EnrollRequest{
		Invite: link.Invite, Secret: link.Secret, Name: wishedName(j.o.Name), Role: j.o.Role,
		WireGuard: id.WireGuard.Public(), Advertise: j.o.Advertise, Relay: j.offer,
	})
	if err != nil {
		return err
	}
	id.NodeID, id.Name, id.Role, id.Advertise = in.NodeID, in.Name, in.Role, j.o.Advertise
	j.log.Info("joined", "name", in.Name, "addr", joinText(in.Addrs))
	return j.dir.saveIdentity(id)
}

// networkOf names a network by its coordinator's address, which is this very
// machine's where it is a loopback's.
func networkOf(endpoint string) string {
	if at, err := netip.ParseAddrPort(endpoint); err == nil && at.Addr().IsLoopback() {
		return "of which it is the first relay itself"
	}
	return "the one of " + endpoint
}

// wishedName is the name a node asks for when its invite has none.
func wishedName(name string) string {
	if name != "" {
		return name
	}
	host, err := os.Hostname()
	if err != nil {
		return "node"
	}
	return host
}
