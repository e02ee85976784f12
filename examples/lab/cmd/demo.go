//go:build linux

package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"overlayd/examples/lab"
)

const drawing = `
  laptop ── home NAT ──┐                       ┌── gateway  192.168.1.200
  10.0.77.2            internet ── lab NAT ────┤
                       │           192.168.1.1 └── LAN host 192.168.1.201
                       VPS 203.0.113.10
`

// demoWithin is the longest a demo may take; it takes some five seconds.
const demoWithin = 55 * time.Second

// story is a demo being told.
type story struct {
	l      *lab.Lab
	s      *services
	marker string // a text that only the two ends may see

	relay, gateway, laptop *lab.Process
	chapters               int
}

// demo tells the story from beginning to end, and leaves nothing behind.
func demo(ctx context.Context, binary string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, demoWithin)
	defer cancel()
	begin := time.Now()
	fmt.Print("overlayd demo\n", drawing, `
Seven machines, made of network namespaces on this one. Both NATs give every
connection another random port and drop what nobody asked for.
`)
	l, err := lab.New(ctx, lab.Options{Home: lab.Hard, Lab: lab.Hard, Docker: true, Overlayd: binary})
	if err != nil {
		return err
	}
	d := &story{l: l, marker: "demo-marker-" + rand.Text()}
	defer func() { err = errors.Join(err, l.Close()) }()
	if d.s, err = serve(ctx, l, strings.Repeat(d.marker+"\n", 100)); err != nil {
		return err
	}
	defer d.s.close()
	before, err := l.Gateway.Snapshot(ctx)
	if err != nil {
		return err
	}
	for _, chapter := range []func(context.Context) error{
		d.nobodyGetsIn, d.vps, d.labGateway, d.theLaptop, d.theLAN, d.whatTheVPSSaw,
	} {
		if err := chapter(ctx); err != nil {
			return err
		}
	}
	if err := d.leave(ctx, before); err != nil {
		return err
	}
	fmt.Printf("\nDone in %.1f s. `make lab` keeps these machines up for you to enter.\n", time.Since(begin).Seconds())
	return nil
}

func (d *story) nobodyGetsIn(ctx context.Context) error {
	d.chapter("Before: nobody reaches the LAN")
	out, err := d.l.Laptop.Run(ctx, "ping", "-c", "1", "-W", "1", lab.HostAddr)
	prompt(d.l.Laptop, "ping -c 1 "+lab.HostAddr)
	if err == nil {
		return fmt.Errorf("%s answers before there is an overlay:\n%s", lab.HostAddr, out)
	}
	say(lines(out, "packet loss"))
	return ctx.Err()
}

func (d *story) vps(ctx context.Context) (err error) {
	d.chapter("The VPS: coordinator, blind relay, and a member itself")
	d.relay, err = d.serve(ctx, d.l.VPS, lab.RelayArgs...)
	return err
}

func (d *story) labGateway(ctx context.Context) (err error) {
	d.chapter("The gateway: a machine of the lab, behind its NAT, with Docker's firewall rules")
	link, err := d.invite(ctx, lab.GatewayInvite)
	if err != nil {
		return err
	}
	if d.gateway, err = d.serve(ctx, d.l.Gateway, "gateway", link); err != nil {
		return err
	}
	return d.show(ctx, d.l.Gateway, "plan")
}

func (d *story) theLaptop(ctx context.Context) (err error) {
	d.chapter("The laptop: anywhere")
	link, err := d.invite(ctx, lab.LaptopInvite)
	if err != nil {
		return err
	}
	if d.laptop, err = d.serve(ctx, d.l.Laptop, "up", link); err != nil {
		return err
	}
	return d.show(ctx, d.l.Laptop, "status")
}

// theLAN uses the LAN host from the laptop while both the VPS and the LAN are
// watched, and keeps the captures for the next chapter.
func (d *story) theLAN(ctx context.Context) error {
	d.chapter("The LAN host, which runs nothing of ours, from the laptop")
	if err := d.command(ctx, d.l.Laptop, "ping", "-c", "3", "-i", "0.2", lab.HostAddr); err != nil {
		return err
	}
	from := "You asked from " + lab.GatewayAddr
	prompt(d.l.Laptop, "curl http://"+lab.HostAddr+"/")
	out, err := d.l.Laptop.Run(ctx, "curl", "-sS", "--max-time", "5", "http://"+lab.HostAddr+"/")
	if err != nil {
		return err
	}
	say(lines(out, "<h1>", "You asked"))
	if !strings.Contains(out, from) {
		return fmt.Errorf("the LAN host does not see the gateway as the source:\n%s", out)
	}
	prompt(d.l.Laptop, "ssh-keyscan -t ed25519 "+lab.HostAddr)
	if out, err = d.l.Laptop.Run(ctx, "ssh-keyscan", "-T", "5", "-t", "ed25519", lab.HostAddr); err != nil {
		return err
	}
	say(strings.TrimSpace(out))
	if !strings.Contains(out, d.s.hostKey) {
		return fmt.Errorf("that is not the LAN host's ssh key, %s", d.s.hostKey)
	}
	return d.command(ctx, d.l.VPS, "ping", "-c", "1", lab.HostAddr)
}

// whatTheVPSSaw fetches the page again with tcpdump on both sides of the
// tunnel: the text is in the LAN's packets, and in none of the VPS's.
func (d *story) whatTheVPSSaw(ctx context.Context) error {
	d.chapter("What the VPS saw of it")
	atVPS, err := d.l.VPS.Capture(ctx, "eth0", "")
	if err != nil {
		return err
	}
	atLAN, err := d.l.Host.Capture(ctx, "eth0", "tcp port 80")
	if err != nil {
		return err
	}
	if _, err := d.l.Laptop.Run(ctx, "curl", "-sS", "--max-time", "5", "http://"+lab.HostAddr+"/"); err != nil {
		return err
	}
	if err := errors.Join(atVPS.Stop(), atLAN.Stop()); err != nil {
		return err
	}
	// The page's data on its way in: WireGuard's type 4, as padded probes are
	// large, too.
	const filter = "udp[8] = 4 and greater 1000 and dst host " + lab.VPSAddr
	prompt(d.l.VPS, "tcpdump -X -c 1 '"+filter+"'   # while the laptop fetched the page")
	out, err := d.l.VPS.Command(ctx, "tcpdump", "-n", "-t", "-X", "-c", "1", "-r", atVPS.File, filter).Output()
	if err != nil || len(out) == 0 {
		return fmt.Errorf("no large datagram at the VPS: %w", err)
	}
	say(head(string(out), 7) + "     ...")
	say("After 28 bytes of IP and UDP: 04, a WireGuard data message; 0b0000, whom it is for (.11, the\n" +
		"laptop); the rest is ciphertext. That is all a relay needs to know.")
	inLAN, err1 := atLAN.Count([]byte(d.marker))
	inVPS, err2 := atVPS.Count([]byte(d.marker))
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	say(fmt.Sprintf("The page's text %s…: %d times in the LAN's packets, %d times in the VPS's.", d.marker[:20], inLAN, inVPS))
	if inLAN == 0 || inVPS != 0 {
		return errors.New("the text should be in the LAN's packets and in none of the VPS's")
	}
	return nil
}

// leave ends the daemons as Ctrl-C does and looks at what is left.
func (d *story) leave(ctx context.Context, before string) error {
	d.chapter("Ctrl-C everywhere")
	for _, p := range []*lab.Process{d.laptop, d.gateway, d.relay} {
		if err := p.Interrupt(); err != nil {
			return fmt.Errorf("%w\n%s", err, p.Tail())
		}
	}
	after, err := d.l.Gateway.Snapshot(ctx)
	if err != nil {
		return err
	}
	if d := lab.Differences(before, after); d != "" {
		return fmt.Errorf("the gateway is not as it was:\n%s", d)
	}
	say("The gateway's links, addresses, rules, routes, iptables and sysctls are as they were.")
	return nil
}

// serve starts a foreground command of overlayd and waits until it is ready.
func (d *story) serve(ctx context.Context, m *lab.Machine, args ...string) (*lab.Process, error) {
	shown := strings.Join(args, " ")
	if i := strings.Index(shown, "ovl://"); i >= 0 {
		shown = shown[:i] + "LINK"
	}
	prompt(m, "overlayd "+shown)
	begin := time.Now()
	p, err := m.Serve(ctx, args...)
	if err == nil {
		say(fmt.Sprintf("ready after %d ms", time.Since(begin).Milliseconds()))
	}
	return p, err
}

// invite makes a link on the VPS and shows it without its secret's end.
func (d *story) invite(ctx context.Context, args []string) (string, error) {
	prompt(d.l.VPS, "overlayd "+strings.Join(args, " "))
	link, err := d.l.VPS.Overlayd(ctx, args...)
	if err == nil {
		say(link[:min(len(link), 60)] + "…")
	}
	return link, err
}

// show runs one of overlayd's short commands and shows what it printed.
func (d *story) show(ctx context.Context, m *lab.Machine, args ...string) error {
	prompt(m, "overlayd "+strings.Join(args, " "))
	out, err := m.Overlayd(ctx, args...)
	if err == nil {
		say(out)
	}
	return err
}

// command runs any command and shows what it printed.
func (d *story) command(ctx context.Context, m *lab.Machine, args ...string) error {
	prompt(m, strings.Join(args, " "))
	out, err := m.Run(ctx, args[0], args[1:]...)
	if err == nil {
		say(strings.TrimSpace(out))
	}
	return err
}

func (d *story) chapter(title string) {
	d.chapters++
	fmt.Printf("\n%d. %s\n", d.chapters, title)
}

func prompt(m *lab.Machine, command string) { fmt.Printf("\n   %s$ %s\n", m.Name, command) }

// say prints a text, indented.
func say(text string) {
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		fmt.Println(strings.TrimRight("     "+lines.Text(), " "))
	}
}

// lines returns those lines of a text that hold one of the words.
func lines(text string, words ...string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		for _, w := range words {
			if strings.Contains(line, w) {
				b.WriteString(strings.TrimSpace(line) + "\n")
				break
			}
		}
	}
	return b.String()
}

// head returns the first n lines of a text.
func head(text string, n int) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if n--; n < 0 {
			break
		}
		b.WriteString(line)
	}
	return b.String()
}
