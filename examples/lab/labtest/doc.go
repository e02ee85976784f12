// Package labtest helps tests that run in package lab: it skips loudly without
// root, builds overlayd once, shows the daemons' logs of a failed test, and
// takes every lab down again.
//
//	func TestMain(m *testing.M) { labtest.Main(m) }
//
//	func TestPing(t *testing.T) {
//		ctx, l := labtest.Joined(t, lab.Options{})
//		labtest.Run(ctx, t, l.Laptop, "ping", "-c", "1", lab.HostAddr)
//	}
package labtest
