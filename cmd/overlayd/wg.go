package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"overlayd/overlay/coord"
	"overlayd/overlay/key"
	"overlayd/overlay/tunnel"
)

func (p *program) wgCommand() *cobra.Command {
	list := func(cmd *cobra.Command) error { return p.listDevices(cmd.Context()) }
	cmd := &cobra.Command{
		Use:   "wg",
		Short: "admit phones and others with a stock WireGuard",
		Long: `Admit devices that run a stock WireGuard and no overlayd: a phone, a router. On the
VPS, or on the machine of an admin. The VPS is their WireGuard peer, and passes on
what they send and get; they reach what the policy gives their user.

The VPS can read what such a device sends and gets, unlike the traffic of machines
that run overlayd.`,
		Example: `  sudo overlayd wg add phone --user alice
  sudo overlayd wg
  sudo overlayd wg remove phone`,
	}
	p.jsonFlag(cmd)
	listCmd := &cobra.Command{
		Use: "list", Short: "list them", Args: words(0, 0, ""),
		Long: "List the devices with a stock WireGuard; the same as overlayd wg.",
		RunE: func(cmd *cobra.Command, _ []string) error { return list(cmd) },
	}
	p.jsonFlag(listCmd)
	return group(cmd, list, p.addDeviceCommand(), listCmd, p.removeDeviceCommand())
}

func (p *program) addDeviceCommand() *cobra.Command {
	var user, public string
	cmd := &cobra.Command{
		Use: "add NAME --user USER", Short: "admit a device",
		Long: `Admit a device with a stock WireGuard, and print the file that it needs on standard
output, as wg-quick and the WireGuard apps read it; on a terminal also as a QR code,
which the apps scan.

The private key in it is made here, shown once and kept nowhere. With --public-key the
key was made on the device, which keeps it: the line for the private key is left to it.`,
		Example: `  sudo overlayd wg add phone --user alice
  sudo overlayd wg add router --user bob --public-key 9ezWh28xjMqnw2tpBhEgVEYIpsDGIVBXqiFcRzhGsjM= > router.conf`,
		Args: words(1, 1, "one NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var wished name
			if err := wished.Set(args[0]); err != nil {
				return valueFault("NAME", err)
			}
			if user == "" {
				return usage("overlayd users lists them", "say with --user whose device it is")
			}
			return p.addDevice(cmd.Context(), user, string(wished), public)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.Var(text{&user, "USER"}, "user", "whose device it is")
	f.Var(text{&public, "KEY"}, "public-key", "the device's own public key (default: a key is made for it)")
	p.completeFlag(cmd, "user", p.userNames)
	p.jsonFlag(cmd)
	return cmd
}

func (p *program) addDevice(ctx context.Context, user, wished, public string) error {
	private := key.NewPrivate()
	k := private.Public()
	if public != "" {
		var err error
		if k, err = key.ParsePublic(public); err != nil {
			return usage("copy it from the device: 44 characters, the last is =", "--public-key: %v", err)
		}
	}
	d, err := admin(ctx, p, func(ctx context.Context, c coordinator) (coord.Device, error) {
		return c.AddDevice(ctx, user, wished, k)
	})
	if err != nil {
		return err
	}
	var shown *key.Private
	if public == "" {
		shown = &private
	}
	file := deviceFile(d, shown)
	if p.common.json {
		return printJSON(p.stdout, struct {
			Schema string     `json:"schema"`
			Device deviceJSON `json:"device"`
			File   string     `json:"file"` // holds the private key, if it was made here
		}{"overlayd.wg-add/v1", newDeviceJSON(d.Node), file})
	}
	if _, err := io.WriteString(p.stdout, file); err != nil {
		return err
	}
	if public == "" {
		if err := p.drawQR(file); err != nil {
			return err
		}
	}
	fmt.Fprint(p.stderr, deviceText(d, public == ""))
	return nil
}

// deviceFile is what wg-quick and the WireGuard apps read; without a private key
// the device has it already.
func deviceFile(d coord.Device, private *key.Private) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s of %s\n[Interface]\n", d.Name, d.User)
	if private != nil {
		fmt.Fprintf(&b, "PrivateKey = %s\n", base64.StdEncoding.EncodeToString(private.Expose()))
	} else {
		b.WriteString("# PrivateKey = the one that was made on this device\n")
	}
	fmt.Fprintf(&b, "Address = %s\nMTU = %d\n\n[Peer]\nPublicKey = %s\nEndpoint = %s\nAllowedIPs = %s\nPersistentKeepalive = 25\n",
		joinAny(addressPrefixes(d.Addrs), ", "), tunnel.DeviceMTU, d.RelayKey, d.Endpoint, joinAny(d.Prefixes, ", "))
	return b.String()
}

func addressPrefixes(addrs []netip.Addr) []netip.Prefix {
	var list []netip.Prefix
	for _, a := range addrs {
		list = append(list, netip.PrefixFrom(a, a.BitLen()))
	}
	return list
}

// deviceText says what to know of a new device.
func deviceText(d coord.Device, made bool) string {
	text := fmt.Sprintf(`
%s is %s's, with the address %s, and reaches what the policy gives %s.
The VPS can read what this device sends and gets, unlike the traffic of machines that
run overlayd.
`, d.Name, d.User, addrsText(d.Addrs), d.User)
	if made {
		text += "The private key is shown this once and kept nowhere.\n"
	}
	return text + "To take it back: sudo overlayd wg remove " + d.Name + "\n"
}

// devices lists the stock devices of the network.
func (p *program) devices(ctx context.Context) (list []coord.NodeInfo, names map[string]string, err error) {
	nodes, err := admin(ctx, p, func(ctx context.Context, c coordinator) ([]coord.NodeInfo, error) { return c.Nodes(ctx) })
	names = map[string]string{}
	for _, n := range nodes {
		names[n.ID] = n.Name
		if n.Host != "" && !n.Seat {
			list = append(list, n)
		}
	}
	return list, names, err
}

func (p *program) listDevices(ctx context.Context) error {
	devices, names, err := p.devices(ctx)
	if err != nil {
		return err
	}
	if p.common.json {
		list := make([]deviceJSON, 0, len(devices))
		for _, d := range devices {
			list = append(list, newDeviceJSON(d.Node))
		}
		return printJSON(p.stdout, struct {
			Schema  string       `json:"schema"`
			Devices []deviceJSON `json:"devices"`
		}{"overlayd.wg/v1", list})
	}
	if len(devices) == 0 {
		fmt.Fprintln(p.stderr, "no devices yet: overlayd wg add NAME --user USER")
		return nil
	}
	var t table
	t.row("DEVICE", "ADDRESS", "USER", "WHERE", "STATE", "PUBLIC KEY")
	for _, d := range devices {
		t.row(d.Name, addrsText(d.Addrs), orUnknown(d.User), "device at "+names[d.Host], string(d.State), d.WireGuard.String())
	}
	t.write(p.stdout)
	return nil
}

func (p *program) removeDeviceCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "remove NAME", Short: "take a device out of the network",
		Long: `Take a device out of the network: the VPS forgets its key at once, and the machines
that let it in cut its connections. Waits until they have said so, like overlayd revoke.`,
		Example: "  sudo overlayd wg remove phone",
		Args:    words(1, 1, "one NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			devices, _, err := p.devices(cmd.Context())
			if err != nil {
				return err
			}
			for _, d := range devices {
				if d.Name == args[0] || d.ID == args[0] {
					r, err := admin(cmd.Context(), p, func(ctx context.Context, c coordinator) (coord.Revoked, error) {
						return c.Revoke(ctx, "node:"+d.ID)
					})
					if err != nil {
						return err
					}
					return p.tellRevoked(r)
				}
			}
			return usage("list them with: overlayd wg", "there is no device %.80q", args[0])
		},
	}
	p.jsonFlag(cmd)
	return cmd
}

// deviceJSON is a device in --json output. Fields are only ever added.
type deviceJSON struct {
	ID        string       `json:"id"`
	Name      string       `json:"name"`
	IPs       []netip.Addr `json:"ips"`
	User      string       `json:"user"`
	State     string       `json:"state"`
	PublicKey string       `json:"public_key"`
	Host      string       `json:"host"` // the id of the member that carries it
}

func newDeviceJSON(n coord.Node) deviceJSON {
	return deviceJSON{ID: n.ID, Name: n.Name, IPs: notNil(n.Addrs), User: n.User, State: string(n.State), PublicKey: n.WireGuard.String(), Host: n.Host}
}
