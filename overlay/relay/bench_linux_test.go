package relay

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"overlayd/overlay/key"
	"overlayd/overlay/udp"
)

// BenchmarkNamespaces sends 1.4 KB datagrams from one namespace to another through a
// relay in a third, and reports what the relay's process spends per gigabyte.
// It needs root. OVERLAYD_BENCH_MBITS sets the rate.
func BenchmarkNamespaces(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("needs root")
	}
	for _, offloads := range []bool{true, false} {
		b.Run(fmt.Sprintf("offloads=%v", offloads), func(b *testing.B) {
			lab := newBenchLab(b, offloads)
			for b.Loop() {
				lab.round(b)
			}
		})
	}
}

const (
	benchPort    = 4443
	benchSecret  = "01234567890123456789012345678901"
	benchSeconds = 3
)

func init() {
	roles["relay"], roles["blast"], roles["sink"] = benchRelay, benchBlast, benchSink
}

// benchLab is three namespaces in a row: sender, relay, receiver.
type benchLab struct{ sender, relay, sink string }

func newBenchLab(b *testing.B, offloads bool) benchLab {
	b.Helper()
	run := func(args ...string) {
		b.Helper()
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			b.Fatalf("%s: %v: %s", args, err, out)
		}
	}
	name := func(s string) string { return fmt.Sprintf("ovl-%d-%s", os.Getpid(), s) }
	l := benchLab{name("a"), name("r"), name("b")}
	for _, ns := range []string{l.sender, l.relay, l.sink} {
		run("ip", "netns", "add", ns)
		b.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
	}
	for i, ns := range []string{l.sender, l.sink} {
		far := fmt.Sprintf("far%d", i)
		run("ip", "-n", ns, "link", "add", "up0", "type", "veth", "peer", "name", far, "netns", l.relay)
		run("ip", "-n", ns, "addr", "add", fmt.Sprintf("10.99.%d.2/24", i), "dev", "up0")
		run("ip", "-n", l.relay, "addr", "add", fmt.Sprintf("10.99.%d.1/24", i), "dev", far)
		run("ip", "-n", ns, "link", "set", "up0", "up")
		run("ip", "-n", l.relay, "link", "set", far, "up")
		for _, end := range [][2]string{{ns, "up0"}, {l.relay, far}} {
			if offloads {
				run("ip", "netns", "exec", end[0], "ethtool", "-K", end[1], "gro", "on")
			} else {
				run("ip", "netns", "exec", end[0], "ethtool", "-K", end[1], "tso", "off", "gso", "off", "gro", "off", "tx-udp-segmentation", "off")
			}
		}
	}
	return l
}

// round measures once.
func (l benchLab) round(b *testing.B) {
	relay, _, stop := startRole(b, l.relay, "relay")
	_, sinkOut, stopSink := startRole(b, l.sink, "sink")
	before := cpuSeconds(b, relay)
	_, blastOut, stopBlast := startRole(b, l.sender, "blast")
	sent := readNumber(b, blastOut)
	cpu := cpuSeconds(b, relay) - before
	stopBlast()
	stopSink()
	got := readNumber(b, sinkOut)
	stop()
	gb := float64(got) / 1e9
	b.ReportMetric(cpu/gb, "cpu-s/GB")
	b.ReportMetric(gb*8/benchSeconds, "Gbit/s")
	b.ReportMetric(100*(1-float64(got)/float64(sent)), "lost-%")
	b.ReportMetric(0, "ns/op")
}

// startRole starts this binary in a namespace and waits until it is ready.
func startRole(b *testing.B, ns, role string) (pid int, out *bufio.Reader, stop func()) {
	b.Helper()
	cmd := exec.Command("ip", "netns", "exec", ns, os.Args[0])
	cmd.Env = append(os.Environ(), "OVERLAYD_TEST_ROLE="+role)
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			_ = cmd.Process.Signal(unix.SIGTERM)
		}
	}
	b.Cleanup(func() {
		stop()
		_, _ = io.Copy(io.Discard, pipe)
		_ = cmd.Wait()
	})
	out = bufio.NewReader(pipe)
	if line, err := out.ReadString('\n'); err != nil || line != "ready\n" {
		b.Fatalf("%s says %q, %v", role, line, err)
	}
	return cmd.Process.Pid, out, stop
}

func readNumber(b *testing.B, r *bufio.Reader) int {
	b.Helper()
	line, err := r.ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// cpuSeconds returns user and system time from /proc/PID/stat, which counts in
// hundredths.
func cpuSeconds(b *testing.B, pid int) float64 {
	b.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	f := strings.Fields(rest) // from the third field on: utime is the 14th
	user, _ := strconv.ParseFloat(f[11], 64)
	system, _ := strconv.ParseFloat(f[12], 64)
	return (user + system) / 100
}

func benchContext() context.Context {
	ctx, _ := signal.NotifyContext(context.Background(), unix.SIGTERM)
	return ctx
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func benchRelay() {
	secret, err := key.ParseSecret([]byte(benchSecret))
	must(err)
	s, err := NewServer(ServerOptions{Listen: netip.AddrPortFrom(netip.IPv4Unspecified(), benchPort), Secret: secret, Log: slog.New(slog.DiscardHandler)})
	must(err)
	fmt.Println("ready")
	must(s.Run(benchContext()))
	if os.Getenv("OVERLAYD_BENCH_COUNTERS") != "" {
		for name, n := range s.Counters() {
			if n > 0 {
				fmt.Fprintln(os.Stderr, name, n)
			}
		}
	}
}

// benchNode attaches and returns its socket.
func benchNode(l Label, relay string) (*udp.Socket, netip.AddrPort) {
	to := netip.AddrPortFrom(netip.MustParseAddr(relay), benchPort)
	k, err := udp.Listen(netip.AddrPortFrom(netip.IPv4Unspecified(), 0), udp.Options{})
	must(err)
	secret, err := key.ParseSecret([]byte(benchSecret))
	must(err)
	b := Ticket{Network: testNetwork, Label: l, NotAfter: time.Now().Add(time.Hour), Serial: 1}.Append(nil)
	n := NewSession(SessionOptions{Ticket: b, Key: SessionKey(secret, b)})
	r := k.NewReader(1)
	for n.Status().State != Up {
		frame, _ := n.Tick(time.Now())
		if frame == nil {
			continue
		}
		must(k.Send(to, frame))
		for range 2 { // CHALLENGE, READY
			trains, err := r.Read()
			must(err)
			if reply := n.Handle(time.Now(), trains[0].Buf); reply != nil {
				must(k.Send(to, reply))
			}
		}
	}
	return k, to
}

func benchBlast() {
	k, to := benchNode(1, "10.99.0.1")
	mbits := 2000
	if s := os.Getenv("OVERLAYD_BENCH_MBITS"); s != "" {
		mbits, _ = strconv.Atoi(s)
	}
	fmt.Println("ready")
	const size, perTrain = 1452, 44
	train := make([]byte, 0, size*perTrain)
	for range perTrain {
		train = append(train, datagram(2, size, 0)...)
	}
	w, sent, start := k.NewWriter(), 0, time.Now()
	for time.Since(start) < benchSeconds*time.Second {
		if ahead := time.Duration(float64(sent)*8/float64(mbits)*1e3) - time.Since(start); ahead > 0 {
			time.Sleep(ahead)
		}
		w.Add(to, size, train)
		w.Flush()
		sent += len(train)
	}
	time.Sleep(50 * time.Millisecond) // what is under way arrives
	fmt.Println(sent)
	<-benchContext().Done()
}

func benchSink() {
	k, _ := benchNode(2, "10.99.1.1")
	fmt.Println("ready")
	ctx := benchContext()
	go func() {
		<-ctx.Done()
		k.Close()
	}()
	r, got := k.NewReader(64), 0
	for {
		trains, err := r.Read()
		if err != nil {
			break
		}
		for _, t := range trains {
			got += len(t.Buf)
		}
	}
	fmt.Println(got)
}
