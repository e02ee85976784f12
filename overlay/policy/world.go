package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// World is the network that a policy is about.
type World struct {
	Users  []User
	Groups []string // names of groups of the network; users' own need not be listed
	Idle   []string // groups that stand for nobody, whoever is in them
	Nodes  []Node
}

// enabled is the world with nobody and nothing disabled.
func (w World) enabled() World {
	w.Users, w.Nodes, w.Idle = slices.Clone(w.Users), slices.Clone(w.Nodes), nil
	for i := range w.Users {
		w.Users[i].Disabled = false
	}
	for i := range w.Nodes {
		w.Nodes[i].Disabled = false
	}
	return w
}

// User is a person.
type User struct {
	Name     string
	Groups   []string
	Tags     []string
	Disabled bool // reaches nothing, and none of their nodes is reached
}

// Role is what a node is for.
type Role string

// The roles.
const (
	Member  Role = "member"
	Gateway Role = "gateway"
	Relay   Role = "relay"
)

// Node is a machine of the network. A node whose user is unknown counts as
// disabled.
type Node struct {
	Name      string
	User      string // "" when it is nobody's: a gateway, a relay, a server
	Addresses []netip.Addr
	Role      Role
	Tags      []string
	Routes    []netip.Prefix // that it advertises and may
	Disabled  bool
	Host      string // the node that carries it, and enforces for it; "": it stands by itself
	Seat      bool   // its address is the carrier's own: it only begins, and nothing reaches it
}

// Grant opens a target to a user for a time, on top of the policy.
type Grant struct {
	ID        string
	User      string
	To        Target
	NotBefore time.Time // zero: from now on
	Until     time.Time // the gateway's own clock ends it
}

// known is every name of a world.
type known struct{ users, groups, tags, nodes map[string]bool }

func (w World) known(p *Policy) known {
	k := known{users: map[string]bool{}, groups: map[string]bool{}, tags: map[string]bool{}, nodes: map[string]bool{}}
	for _, g := range w.Groups {
		k.groups[g] = true
	}
	for _, g := range p.Groups {
		k.groups[g.Name] = true
	}
	for _, u := range w.Users {
		k.users[u.Name] = true
		for _, g := range u.Groups {
			k.groups[g] = true
		}
		for _, t := range u.Tags {
			k.tags[t] = true
		}
	}
	for _, n := range w.Nodes {
		k.nodes[n.Name] = true
		for _, t := range n.Tags {
			k.tags[t] = true
		}
	}
	return k
}

// Check finds the names of the policy that the world does not know, and those
// that it knows twice. What it returns as error is Problems.
func (p *Policy) Check(w World) error {
	k := w.known(p)
	var found Problems
	add := func(line int, pr *Problem) {
		if pr != nil {
			pr.Line = line
			found = append(found, pr)
		}
	}
	for _, g := range p.Groups {
		for _, m := range g.Members {
			add(g.line, k.check(Term{Kind: KindUser, Name: m}, p))
		}
	}
	for _, r := range p.Rules {
		for _, t := range r.Src {
			add(t.line, k.checkSource(t, p))
		}
		for _, t := range r.Dst {
			add(t.line, k.check(t, p))
		}
	}
	for _, t := range p.Tests {
		add(t.Who.line, k.check(t.Who, p))
		for _, to := range slices.Concat(t.Accept, t.Deny) {
			add(to.Dst.line, k.check(to.Dst, p))
		}
	}
	return found.sorted()
}

// checkSource is check for the source of a rule, where a bare name that nobody has
// may be meant for a group.
func (k known) checkSource(t Term, p *Policy) *Problem {
	if t.Kind != KindUser || !t.bare || k.users[t.Name] || k.groups[t.Name] {
		return k.check(t, p)
	}
	hint := DidYouMean(t.Name, sortedKeys(k.users), "")
	if hint == "" {
		hint = strings.Replace(DidYouMean(t.Name, sortedKeys(k.groups), ""), "mean ", "mean group:", 1)
	}
	if hint == "" {
		hint = fmt.Sprintf("overlayd users add %s; or write group:%[1]s after overlayd groups add %[1]s", t.Name)
	}
	return hinted(hint, "there is no user or group %s", t.Name)
}

// check returns what is wrong with one name.
func (k known) check(t Term, p *Policy) *Problem {
	switch t.Kind {
	case KindUser:
		if k.users[t.Name] {
			return nil
		}
		if k.groups[t.Name] {
			return hinted("write group:"+t.Name, "there is no user %s, but a group", t.Name)
		}
		return hinted(DidYouMean(t.Name, sortedKeys(k.users), "overlayd users add "+t.Name), "there is no user %s", t.Name)
	case KindGroup:
		if t.bare && k.users[t.Name] {
			return hinted("write group:"+t.Name+" or user:"+t.Name, "%s is both a group and a user", t.Name)
		}
		if k.groups[t.Name] {
			return nil
		}
		return hinted(DidYouMean(t.Name, sortedKeys(k.groups), "add it under groups:, or overlayd groups add "+t.Name), "there is no group %s", t.Name)
	case KindTag:
		if k.tags[t.Name] {
			return nil
		}
		return hinted(DidYouMean(t.Name, sortedKeys(k.tags), "give a node or a user this tag first"), "nothing has the tag %s", t.Name)
	case KindNode:
		if k.nodes[t.Name] {
			return nil
		}
		return hinted(DidYouMean(t.Name, append(sortedKeys(k.nodes), p.hostNames()...), "add it under hosts: with its address"),
			"there is no host or node %s", t.Name)
	case KindHost:
		if p.host(t.Name) == nil {
			return hinted(DidYouMean(t.Name, p.hostNames(), "add it under hosts: with its address"), "there is no host %s", t.Name)
		}
		if t.bare && k.nodes[t.Name] {
			return hinted("write host:"+t.Name+" or node:"+t.Name, "%s is both a host and a node", t.Name)
		}
	}
	return nil
}

func (p *Policy) hostNames() []string {
	names := make([]string, len(p.Hosts))
	for i, h := range p.Hosts {
		names[i] = h.Name
	}
	return names
}

// CheckGrant refuses a grant that names nobody or nothing, or is over.
func (p *Policy) CheckGrant(w World, g Grant, now time.Time) error {
	k := w.known(p)
	switch {
	case !k.users[g.User]:
		return hinted(DidYouMean(g.User, sortedKeys(k.users), "overlayd users lists them"), "grant: there is no user %s", clip(g.User))
	case g.Until.IsZero():
		return hinted("say for how long: --for 4h", "grant: it would never end")
	case !now.Before(g.Until):
		return hinted("choose a time to come", "grant: it ended at %s", g.Until.Format(time.RFC3339))
	case !g.NotBefore.Before(g.Until):
		return hinted("choose an earlier beginning", "grant: it ends before it begins")
	}
	if pr := k.check(p.resolve(g.To.Dst), p); pr != nil {
		return pr
	}
	return nil
}

// Unknown says why nobody knows the name of a target; "": it is known, or an
// address. It names no other: whoever asks may be no admin.
func (p *Policy) Unknown(w World, to Target) string {
	if pr := w.known(p).check(p.resolve(to.Dst), p); pr != nil {
		return pr.Text
	}
	return ""
}
