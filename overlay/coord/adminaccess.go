package coord

import (
	"context"
	"time"

	"connectrpc.com/connect"

	"overlayd/overlay/coord/api"
)

// PolicyVersion is a policy that was put in force.
type PolicyVersion struct {
	Version uint64
	By      string
	At      time.Time
}

// StoredPolicy is a version of the policy, and a list of those that are kept.
type StoredPolicy struct {
	PolicyVersion
	Text     string
	Versions []PolicyVersion // the oldest first
}

// PolicyChange is what a policy would change, or did.
type PolicyChange struct {
	PolicyVersion          // of what is in force now; zero when it was only tried
	Changes       []string // a line each, beginning with + or -
	Tests         int      // that passed
	Warnings      []string // a line each: what may be a slip
}

// Policy returns a version of the policy; 0 is the one in force.
func (a *Admin) Policy(ctx context.Context, version uint64) (StoredPolicy, error) {
	resp, err := a.c.GetPolicy(ctx, connect.NewRequest(&api.GetPolicyRequest{Version: version}))
	if err != nil {
		return StoredPolicy{}, called("get policy", err)
	}
	s := StoredPolicy{PolicyVersion: policyFromWire(resp.Msg.Policy), Text: resp.Msg.Text}
	for _, v := range resp.Msg.Versions {
		s.Versions = append(s.Versions, policyFromWire(v))
	}
	return s, nil
}

// TryPolicy checks a policy, runs its tests, and says what it would change. No
// text means the policy in force.
func (a *Admin) TryPolicy(ctx context.Context, text string) (PolicyChange, error) {
	resp, err := a.c.TryPolicy(ctx, connect.NewRequest(&api.TryPolicyRequest{Text: text}))
	if err != nil {
		return PolicyChange{}, called("try policy", err)
	}
	return PolicyChange{Changes: resp.Msg.Changes, Tests: int(resp.Msg.Tests), Warnings: resp.Msg.Warnings}, nil
}

// ApplyPolicy puts a policy in force, or says why it cannot be.
func (a *Admin) ApplyPolicy(ctx context.Context, text string) (PolicyChange, error) {
	resp, err := a.c.ApplyPolicy(ctx, connect.NewRequest(&api.ApplyPolicyRequest{Text: text}))
	if err != nil {
		return PolicyChange{}, called("apply policy", err)
	}
	return PolicyChange{PolicyVersion: policyFromWire(resp.Msg.Policy), Changes: resp.Msg.Changes, Tests: int(resp.Msg.Tests), Warnings: resp.Msg.Warnings}, nil
}

func policyFromWire(w *api.PolicyInfo) PolicyVersion {
	return PolicyVersion{Version: w.GetVersion(), By: w.GetBy(), At: timeFromWire(w.GetAt())}
}

// Grant opens a target to a user, on top of the policy.
type Grant struct {
	ID      string
	User    string
	Target  string
	Until   time.Time
	By      string
	Created time.Time
	Warning string // why it may open nothing; "": nothing is known against it
}

// Request is what a user asked for.
type Request struct {
	ID      string
	User    string
	Node    string // that it was asked from
	Target  string
	For     time.Duration
	Created time.Time
}

// Grant opens a target to a user for a time.
func (a *Admin) Grant(ctx context.Context, user, target string, span time.Duration) (Grant, error) {
	resp, err := a.c.AddGrant(ctx, connect.NewRequest(&api.AddGrantRequest{User: user, Target: target, ForMs: span.Milliseconds()}))
	if err != nil {
		return Grant{}, called("grant", err)
	}
	return grantFromWire(resp.Msg.Grant)
}

// Grants lists the grants that are not over: for an admin all, for others their
// own.
func (a *Admin) Grants(ctx context.Context) ([]Grant, error) {
	resp, err := a.c.ListGrants(ctx, connect.NewRequest(&api.ListGrantsRequest{}))
	if err != nil {
		return nil, called("list grants", err)
	}
	return each(resp.Msg.Grants, grantFromWire)
}

func grantFromWire(w *api.GrantInfo) (Grant, error) {
	return Grant{
		ID: w.GetId(), User: w.GetUser(), Target: w.GetTarget(), Until: timeFromWire(w.GetUntil()),
		By: w.GetBy(), Created: timeFromWire(w.GetCreatedAt()), Warning: w.GetWarning(),
	}, nil
}

// Request asks for access in the name of this machine's user. 0 means
// DefaultGrant.
func (a *Admin) Request(ctx context.Context, target string, span time.Duration) (Request, error) {
	resp, err := a.c.RequestAccess(ctx, connect.NewRequest(&api.RequestAccessRequest{Target: target, ForMs: span.Milliseconds()}))
	if err != nil {
		return Request{}, called("request access", err)
	}
	return requestFromWire(resp.Msg.Request)
}

// Requests lists what waits for an answer: for an admin all, for others their
// own.
func (a *Admin) Requests(ctx context.Context) ([]Request, error) {
	resp, err := a.c.ListRequests(ctx, connect.NewRequest(&api.ListRequestsRequest{}))
	if err != nil {
		return nil, called("list requests", err)
	}
	return each(resp.Msg.Requests, requestFromWire)
}

// ApproveRequest grants what was asked for; with a span, for that long.
func (a *Admin) ApproveRequest(ctx context.Context, id string, span time.Duration) (Grant, error) {
	resp, err := a.c.ApproveRequest(ctx, connect.NewRequest(&api.ApproveRequestRequest{Id: id, ForMs: span.Milliseconds()}))
	if err != nil {
		return Grant{}, called("approve request", err)
	}
	return grantFromWire(resp.Msg.Grant)
}

// DenyRequest forgets a request.
func (a *Admin) DenyRequest(ctx context.Context, id string) error {
	_, err := a.c.DenyRequest(ctx, connect.NewRequest(&api.DenyRequestRequest{Id: id}))
	return called("deny request", err)
}

func requestFromWire(w *api.AccessRequest) (Request, error) {
	return Request{
		ID: w.GetId(), User: w.GetUser(), Node: w.GetNode(), Target: w.GetTarget(),
		For: time.Duration(w.GetForMs()) * time.Millisecond, Created: timeFromWire(w.GetCreatedAt()),
	}, nil
}

// Revoke takes access away: a user's, a node's, an invite, a grant. It returns
// when the nodes have applied it, or after some seconds.
func (a *Admin) Revoke(ctx context.Context, what string) (Revoked, error) {
	resp, err := a.c.Revoke(ctx, connect.NewRequest(&api.RevokeRequest{What: what}))
	if err != nil {
		return Revoked{}, called("revoke", err)
	}
	r := Revoked{Kind: resp.Msg.Kind, Name: resp.Msg.Name, Took: time.Duration(resp.Msg.TookMs) * time.Millisecond}
	for _, n := range resp.Msg.Nodes {
		r.Nodes = append(r.Nodes, Ack{Node: n.Node, Online: n.Online, Applied: n.Applied, FlowsCut: int(n.FlowsCut)})
	}
	return r, nil
}

// Access is who reaches a target.
type Access struct {
	At     time.Time
	Policy uint64 // the version in force then
	Lines  []AccessLine
}

// AccessLine is one user, or one node that is nobody's.
type AccessLine struct {
	Who   string // user:NAME or node:NAME
	Whole bool   // false: a part of the target
	Rule  string
	Nodes []string // that receive for the target
}

// Access says who reaches a target, now or, with a time, then.
func (a *Admin) Access(ctx context.Context, target string, at time.Time) (Access, error) {
	resp, err := a.c.ListAccess(ctx, connect.NewRequest(&api.ListAccessRequest{Target: target, At: timeToWire(at)}))
	if err != nil {
		return Access{}, called("list access", err)
	}
	v := Access{At: timeFromWire(resp.Msg.At), Policy: resp.Msg.Policy}
	for _, l := range resp.Msg.Access {
		v.Lines = append(v.Lines, AccessLine{Who: l.Who, Whole: l.Whole, Rule: l.Rule, Nodes: l.Nodes})
	}
	return v, nil
}

// Explain walks the way from a user, or node:NAME, to a target. Nobody means
// this machine's user. It reports whether no step is wrong.
func (a *Admin) Explain(ctx context.Context, who, target string) ([]Step, bool, error) {
	resp, err := a.c.Explain(ctx, connect.NewRequest(&api.ExplainRequest{Who: who, Target: target}))
	if err != nil {
		return nil, false, called("explain", err)
	}
	var steps []Step
	for _, s := range resp.Msg.Steps {
		steps = append(steps, Step{Name: s.Name, Verdict: s.Verdict, Text: s.Text})
	}
	return steps, resp.Msg.Allowed, nil
}

// Verified is what a check of the record of changes found.
type Verified struct {
	Lines    uint64
	Problems []string // empty: nothing is missing or changed
}

// VerifyRecord checks the record of changes.
func (a *Admin) VerifyRecord(ctx context.Context) (Verified, error) {
	resp, err := a.c.VerifyRecord(ctx, connect.NewRequest(&api.VerifyRecordRequest{}))
	if err != nil {
		return Verified{}, called("verify record", err)
	}
	return Verified{Lines: resp.Msg.Lines, Problems: resp.Msg.Problems}, nil
}
