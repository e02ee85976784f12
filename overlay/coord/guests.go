package coord

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"overlayd/overlay/policy"
)

// Guests come without overlayd: through the jump host and published ports, which
// run in the process of the coordinator. What they may is asked here.

// UserOfKey returns whose a public key is, in SSH's form: the user's id and name.
// Nobody who may do nothing is returned.
func (s *Server) UserOfKey(blob []byte) (id, name string, ok bool) {
	snap := s.ledger.now()
	k := snap.sshKeys[sshKeyID(blob)]
	if k == nil {
		return "", "", false
	}
	u := snap.users[k.User]
	if u == nil || u.Disabled {
		return "", "", false
	}
	return u.ID, u.Name, true
}

// ActiveUser returns a user's name, of a user that is not disabled.
func (s *Server) ActiveUser(id string) (name string, ok bool) {
	u := s.ledger.now().users[id]
	if u == nil || u.Disabled {
		return "", false
	}
	return u.Name, true
}

// reach remembers the policy worked out, as long as it is in force.
type reach struct {
	mu       sync.Mutex // guards the rest, and calls of resolved
	of       *standing
	resolved *policy.Resolved
}

// Reach says whether a user, or with an empty name the coordinator's own machine,
// may reach a port, and whether somebody is there that receives for it. It
// returns the rule that allows it, or a Problem.
func (s *Server) Reach(user string, protocol string, to netip.AddrPort) (rule string, err error) {
	snap := s.ledger.now()
	own := snap.ownRelay()
	who := policy.Term{Kind: policy.KindUser, Name: user}
	if user == "" {
		if own == nil {
			return "", problem(KindUnreachable, "", "this machine has not joined its own network yet")
		}
		who = policy.Term{Kind: policy.KindNode, Name: own.Name}
	}
	target, err := policy.ParseTarget(to.String() + "/" + protocol)
	if err != nil {
		return "", termProblem(err)
	}
	if snap.standing == nil {
		return "", problem(KindDenied, "", "there is no policy")
	}
	v := s.reach.ask(snap.standing, who, target, s.o.Now())
	switch {
	case len(v.Nodes) == 0:
		return "", problem(KindNotFound, "overlayd routes lists what gateways advertise", "no machine has %s or a route to it", to.Addr())
	case !v.Allowed:
		return "", problem(KindDenied, "overlayd explain says why", "refused by policy")
	}
	var away []string
	for _, name := range v.Nodes {
		n := snap.byName[name]
		if n == nil {
			continue
		}
		if s.seen(n).online {
			return v.Rule, nil
		}
		away = append(away, name)
	}
	return "", problem(KindUnreachable, "look at overlayd status there", "%s is offline", strings.Join(away, ", "))
}

func (r *reach) ask(of *standing, who policy.Term, to policy.Target, at time.Time) policy.Verdict {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.of != of {
		r.of, r.resolved = of, of.answer()
	}
	return r.resolved.Reaches(who, to, at)
}

// HostAddr returns the address that a name of the policy or of a node stands for.
// A user, named by name, hears only of hosts of which the policy gives the user some
// port; an empty name hears of all.
func (s *Server) HostAddr(user, name string) (netip.Addr, error) {
	snap := s.ledger.now()
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	a := snap.hostAddr(name)
	if !a.IsValid() || user != "" && !s.reachesSome(snap, user, a) {
		return netip.Addr{}, fmt.Errorf("there is no node or host %.80q", name)
	}
	return a, nil
}

func (s *snapshot) hostAddr(name string) netip.Addr {
	if n := s.byName[name]; n != nil {
		return addrOf(s.network.Overlay, n.Label)
	}
	if s.standing != nil {
		for _, h := range s.standing.policy.Hosts {
			if strings.EqualFold(h.Name, name) && len(h.Prefixes) > 0 && h.Prefixes[0].IsSingleIP() {
				return h.Prefixes[0].Addr()
			}
		}
	}
	return netip.Addr{}
}

// reachesSome reports whether the policy ever gives a user any port of an address.
func (s *Server) reachesSome(snap *snapshot, user string, to netip.Addr) bool {
	target, err := policy.ParseTarget(to.String())
	if err != nil || snap.standing == nil {
		return false
	}
	return s.reach.ask(snap.standing, policy.Term{Kind: policy.KindUser, Name: user}, target, time.Time{}).Partly
}

// LANs returns the routes of gateways of which the policy gives a user, named by name
// or id, some part.
func (s *Server) LANs(user string) ([]netip.Prefix, error) {
	snap := s.ledger.now()
	u, err := snap.activeUser(user)
	if err != nil {
		return nil, err
	}
	return snap.within(u)[1:], nil // the first is the overlay
}
