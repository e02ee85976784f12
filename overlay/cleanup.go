package overlay

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"

	"overlayd/journal"
	"overlayd/nat"
	"overlayd/routing"
)

// Cleanup takes back what a daemon left behind that was killed: rules, routes,
// chains and sysctls. It is safe to run at any time but under a running daemon,
// which it refuses. done is what was taken back, as the commands that would do it.
func Cleanup(ctx context.Context, o Options) (done []string, err error) {
	o, err = o.filled()
	if err != nil {
		return nil, err
	}
	if err := needRoot(sudo); err != nil {
		return nil, err
	}
	dir := stateDir{o.StateDir}
	if _, err := os.Stat(dir.path); errors.Is(err, fs.ErrNotExist) {
		// Nothing was ever noted here; rules and chains are found by name.
		tmp, err := os.MkdirTemp("", "overlayd-cleanup-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(tmp)
		dir.path = tmp
	}
	unlock, err := dir.open()
	if err != nil {
		return nil, err
	}
	defer unlock()
	notes, err := journal.Open(dir.path)
	if err != nil {
		return nil, err
	}

	did := func(act string) { done = append(done, act) }
	kernel, err := routing.NewKernel(routing.Options{Journal: notes, Log: o.Log, Did: did})
	if err != nil {
		return nil, err
	}
	kernelErr := kernel.Clear(ctx, o.Interface) // forwarding ends before its filters
	tables, err := nat.New(nat.Options{Journal: notes, Log: o.Log, Did: did})
	switch {
	case errors.Is(err, exec.ErrNotFound):
		o.Log.Info("no iptables here, so there are no chains to remove")
		err = nil
	case err == nil:
		err = tables.Clear(ctx)
	}
	return done, errors.Join(kernelErr, err)
}

// PlanText returns the plan that the cached map of a stopped node leads to. It
// touches nothing.
func PlanText(ctx context.Context, o Options) (string, error) {
	o, err := o.filled()
	if err != nil {
		return "", err
	}
	dir := stateDir{o.StateDir}
	id, err := dir.identity()
	if err != nil {
		return "", permissionFault(err, "read %s", dir.path)
	}
	m, err := dir.cachedMap()
	if err != nil {
		return "", permissionFault(err, "read %s", dir.path)
	}
	if id == nil || m == nil {
		return "", fault(ExitNotJoined, "join with `overlayd up LINK` or `overlayd gateway LINK` first",
			"there is no map in %s to make a plan from", dir.path)
	}
	host, err := routing.Look()
	if err != nil {
		return "", err
	}
	addrs := relayAddrs{}
	addrs.resolve(ctx, othersRelays(m), true)
	n, err := New(o)
	if err != nil {
		return "", err
	}
	return plan(planInput{
		Map: m, Host: host, Interface: o.Interface, RelayAddr: addrs, Needs: n.needs(m), Firewall: haveIptables(),
		Userspace: o.Userspace, HostPorts: o.HostPorts,
	}).String(), nil
}
