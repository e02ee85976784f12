package coord

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	"overlayd/overlay/coord/api"
	"overlayd/overlay/policy"
	"overlayd/overlay/record"
)

// ListAccess says who reaches a target, now or at a time.
func (s adminService) ListAccess(ctx context.Context, req *connect.Request[api.ListAccessRequest]) (*connect.Response[api.ListAccessResponse], error) {
	to, err := policy.ParseTarget(req.Msg.Target)
	if err != nil {
		return nil, termProblem(err)
	}
	snap, at := s.ledger.now(), s.o.Now()
	if req.Msg.At != nil {
		then := req.Msg.At.AsTime()
		if then.After(at) {
			return nil, problem(KindInvalid, "choose an earlier time", "nobody knows who may reach %s at %s", to, then.Format(time.RFC3339))
		}
		if snap, err = s.snapshotAt(ctx, then); err != nil {
			return nil, err
		}
		at = then
	}
	if snap.standing == nil {
		return nil, problem(KindNotFound, "choose a later time", "there was no policy then")
	}
	resp, answer := &api.ListAccessResponse{At: timeToWire(at), Policy: snap.standing.version}, snap.standing.answer()
	if why := answer.Reaches(policy.Term{Kind: policy.KindAll}, to, at).Why; strings.HasSuffix(why, "for no address") {
		return nil, problem(KindNotFound, "overlayd policy show lists the hosts, overlayd nodes the machines", "%s at that time", why)
	}
	for _, a := range answer.WhoReaches(to, at) {
		resp.Access = append(resp.Access, &api.AccessInfo{Who: a.Who.String(), Whole: a.Verdict.Allowed, Rule: a.Verdict.Rule, Nodes: a.Verdict.Nodes})
	}
	return connect.NewResponse(resp), nil
}

// The verdicts of a step.
const (
	VerdictOK      = "ok"
	VerdictBad     = "bad"
	VerdictUnknown = "unknown"
)

// Explain walks the way from somebody to a target.
func (s adminService) Explain(ctx context.Context, req *connect.Request[api.ExplainRequest]) (*connect.Response[api.ExplainResponse], error) {
	snap, who := s.ledger.now(), req.Msg.Who
	if u := ownerOf(snap, actOf(ctx).member); who == "" && u != nil {
		who = "user:" + u.Name
	}
	if who == "" {
		return nil, problem(KindInvalid, "overlayd explain USER TARGET", "say who is to reach it")
	}
	from, err := policy.ParseSource(who)
	if err != nil {
		return nil, termProblem(err)
	}
	to, err := policy.ParseTarget(req.Msg.Target)
	if err != nil {
		return nil, termProblem(err)
	}
	if from.Kind != policy.KindUser && from.Kind != policy.KindNode {
		return nil, problem(KindInvalid, "name a user, or node:NAME", "%s is neither a user nor a node", from)
	}
	owner := ""
	if u := snap.userByName[from.Name]; u != nil && from.Kind == policy.KindUser {
		owner = u.ID
	} else if n := snap.byName[from.Name]; n != nil && from.Kind == policy.KindNode {
		owner = n.User
	}
	if !s.sees(ctx, snap, owner) {
		return nil, problem(KindDenied, "ask an admin", "only admins may ask about others")
	}
	steps := s.explain(snap, from, to, strings.TrimSpace(req.Msg.Target), s.o.Now())
	resp := &api.ExplainResponse{Allowed: true}
	for _, st := range steps {
		resp.Steps = append(resp.Steps, &api.Step{Name: st.Name, Verdict: st.Verdict, Text: st.Text})
		resp.Allowed = resp.Allowed && st.Verdict != VerdictBad
	}
	return connect.NewResponse(resp), nil
}

// Step is one thing that has to be right for a packet to arrive.
type Step struct {
	Name    string // user, name, policy, route, gateway, path
	Verdict string // VerdictOK, VerdictBad, VerdictUnknown
	Text    string
}

// explain looks at every step, also behind the first that is wrong, unless that is
// the name. The target is also given as it was typed.
func (s *Server) explain(snap *snapshot, from policy.Term, to policy.Target, target string, now time.Time) []Step {
	answer := snap.standing.answer()
	v := answer.Reaches(from, to, now)
	own, first := snap.explainWho(from)
	steps := []Step{first}
	if why := snap.standing.policy.Unknown(snap.standing.world, to); why != "" {
		return append(steps, Step{"name", VerdictBad, why + "; what only a LAN calls so is asked for by its address"})
	}
	name := Step{"name", VerdictOK, target}
	if list := snap.meaning(to.Dst); len(list) > 0 {
		name.Text = fmt.Sprintf("%s is %s", to.Dst.Name, strings.Join(list, ", "))
	}
	steps = append(steps, name)
	rule := Step{"policy", VerdictOK, "rule " + v.Rule + " allows it"}
	switch {
	case !v.Partly && (len(v.Nodes) > 0 || v.Nowhere) && first.Verdict == VerdictOK:
		rule = Step{"policy", VerdictBad, fmt.Sprintf("no rule lets %s reach %s", from.Name, target)}
		if other := answer.Reaches(from, to, time.Time{}); other.Partly {
			rule.Text = fmt.Sprintf("rule %s lets %s reach %s, but not at this time", other.Rule, from.Name, target)
		}
	case !v.Partly:
		rule = Step{"policy", VerdictBad, v.Why}
	case !v.Allowed:
		rule = Step{"policy", VerdictBad, "rule " + v.Rule + " allows a part of it only"}
	}
	steps = append(steps, rule)
	switch {
	case v.Nowhere:
		return append(steps, Step{"route", VerdictBad, "no node has that address or a route to it"})
	case len(v.Nodes) == 0:
		return append(steps, Step{"route", VerdictUnknown, "no single node receives for " + to.Dst.String()})
	}
	steps = append(steps, Step{"route", VerdictOK, "through " + strings.Join(v.Nodes, " or ")})
	return append(steps, s.explainPath(snap, own, v.Nodes)...)
}

// meaning returns the addresses that a name of a host or a node stands for.
func (s *snapshot) meaning(t policy.Term) (list []string) {
	if t.Name == "" {
		return nil
	}
	for _, h := range s.standing.policy.Hosts {
		if h.Name == t.Name && t.Kind != policy.KindTag {
			for _, p := range h.Prefixes {
				list = append(list, policy.Term{Kind: policy.KindPrefix, Prefix: p}.String())
			}
			return list
		}
	}
	if n := s.byName[t.Name]; n != nil && t.Kind == policy.KindNode {
		return []string{addrOf(s.network.Overlay, n.Label).String()}
	}
	return nil
}

// explainWho says what is to be said of who asks, and with which nodes.
func (s *snapshot) explainWho(from policy.Term) (own []*nodeRecord, st Step) {
	if from.Kind == policy.KindNode {
		n := s.byName[from.Name]
		switch {
		case n == nil:
			return nil, Step{"user", VerdictBad, "there is no node " + from.Name}
		case s.stateOf(n) != NodeActive:
			return nil, Step{"user", VerdictBad, fmt.Sprintf("the node %s is %s", n.Name, s.stateOf(n))}
		}
		return []*nodeRecord{n}, Step{"user", VerdictOK, "the node " + n.Name + " is active"}
	}
	u := s.userByName[from.Name]
	switch {
	case u == nil:
		return nil, Step{"user", VerdictBad, "there is no user " + from.Name}
	case u.Disabled:
		return nil, Step{"user", VerdictBad, "the user " + u.Name + " is disabled"}
	}
	var active, other []string
	for _, n := range s.nodesOf(u.ID) {
		if state := s.stateOf(n); state == NodeActive {
			own, active = append(own, n), append(active, n.Name)
		} else {
			other = append(other, fmt.Sprintf("%s is %s", n.Name, state))
		}
	}
	if len(own) == 0 {
		return nil, Step{"user", VerdictBad, strings.Join(append([]string{u.Name + " has no active node"}, other...), ", ")}
	}
	return own, Step{"user", VerdictOK, strings.Join(append([]string{u.Name + " is active with " + strings.Join(active, ", ")}, other...), ", ")}
}

// explainPath says whether the nodes are there, and meet at a relay.
func (s *Server) explainPath(snap *snapshot, own []*nodeRecord, receivers []string) []Step {
	gateway, path := Step{"gateway", VerdictBad, ""}, Step{"path", VerdictUnknown, ""}
	var away []string
	relays := map[string]string{}
	for _, r := range s.relays(snap) {
		relays[r.ID] = r.Name
	}
	for _, name := range receivers {
		g := snap.byName[name]
		if g == nil {
			continue
		}
		seen := s.seen(g)
		if !seen.online {
			away = append(away, name+" is offline")
			continue
		}
		gateway = Step{"gateway", VerdictOK, name + " is online"}
		for _, n := range own {
			mine := s.seen(n)
			if !mine.online {
				path.Text = n.Name + " is offline"
				continue
			}
			for _, a := range mine.attached {
				if slices.ContainsFunc(seen.attached, func(b Attachment) bool { return a.Relay == b.Relay }) {
					return []Step{gateway, {"path", VerdictOK, fmt.Sprintf("%s and %s meet at the relay %s, or directly", n.Name, name, relays[a.Relay])}}
				}
			}
			path.Text = n.Name + " and " + name + " are at no common relay; overlayd ping " + name + " there tells of a direct path"
		}
	}
	if gateway.Verdict == VerdictBad {
		gateway.Text, path.Text = strings.Join(away, ", "), "there is nobody to reach"
	}
	if path.Text == "" {
		path.Text = "there is no machine to reach it from"
	}
	return []Step{gateway, path}
}

// VerifyRecord checks the chain of the record.
func (s adminService) VerifyRecord(ctx context.Context, _ *connect.Request[api.VerifyRecordRequest]) (*connect.Response[api.VerifyRecordResponse], error) {
	if s.o.Events == nil {
		return nil, problem(KindNotFound, "", "this coordinator keeps no record")
	}
	s.syncEvents(ctx)
	v, err := record.Verify(s.o.Events.Dir, s.o.Events.Name)
	if err != nil {
		return nil, err
	}
	if st := s.o.Events.Log.Status(); st.Err != nil {
		v.Problems = append(v.Problems, fmt.Sprintf("changes are not recorded since %s: %s", st.Since.UTC().Format(time.RFC3339), st.Err))
	}
	return connect.NewResponse(&api.VerifyRecordResponse{Lines: v.Lines, Problems: v.Problems}), nil
}
