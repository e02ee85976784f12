package tun

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"overlayd/internal/netnstest"
	"overlayd/overlay/train"
)

// up gives the interface the address 172.18.0.11/24.
func up(t *testing.T, name string) {
	t.Helper()
	addr := func(req *unix.Ifreq) {
		if err := req.SetInet4Addr([]byte{172, 18, 0, 11}); err != nil {
			t.Error(err)
		}
	}
	mask := func(req *unix.Ifreq) { _ = req.SetInet4Addr([]byte{255, 255, 255, 0}) }
	flags := func(req *unix.Ifreq) { req.SetUint16(unix.IFF_UP) }
	for _, err := range []error{
		link(name, unix.SIOCSIFADDR, addr, nil),
		link(name, unix.SIOCSIFNETMASK, mask, nil),
		link(name, unix.SIOCSIFFLAGS, flags, nil),
	} {
		if err != nil {
			t.Error(err)
		}
	}
}

// datagram is a packet that the kernel takes when the interface is up.
func datagram() []byte {
	p := make([]byte, 20+8)
	p[0], p[3], p[8], p[9] = 0x45, byte(len(p)), 64, unix.IPPROTO_UDP
	copy(p[12:], []byte{172, 18, 0, 11, 192, 168, 1, 201})
	p[25] = 8 // of the UDP header, which has no checksum
	return p
}

// readUDP reads packets to a port until they have brought so many bytes.
func readUDP(d *Device, port uint16, most int) (got []byte, packets [][]byte, err error) {
	const offset = 16
	bufs, sizes := make([][]byte, batch), make([]int, batch)
	for i := range bufs {
		bufs[i] = make([]byte, 2000)
	}
	for len(got) < most {
		n, err := d.Read(bufs, sizes, offset)
		if err != nil {
			return nil, nil, err
		}
		for i := range n {
			p := bufs[i][offset : offset+sizes[i]]
			if p[0] != 0x45 || p[9] != unix.IPPROTO_UDP || binary.BigEndian.Uint16(p[22:]) != port {
				continue // the kernel's own, such as router solicitations
			}
			got = append(got, p[28:]...)
			packets = append(packets, bytes.Clone(p))
		}
	}
	return got, packets, nil
}

// TestDevice lets a socket of the kernel send a train and receive one.
func TestDevice(t *testing.T) {
	netnstest.In(t, func(t *testing.T) {
		d, err := Open("ovl0", 1420)
		if err != nil {
			t.Error(err)
			return
		}
		defer d.Close()
		if mtu, err := d.MTU(); mtu != 1420 || err != nil {
			t.Errorf("mtu %d, %v", mtu, err)
		}
		if n, err := d.Write([][]byte{datagram()}, 0); n != 0 || err != nil || d.Dropped() != 1 {
			t.Errorf("a write to an interface that is down: %d, %v, %d dropped", n, err, d.Dropped())
		}
		up(t, "ovl0")

		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(fd)
		there := &unix.SockaddrInet4{Port: 9, Addr: [4]byte{172, 18, 0, 200}}
		if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Port: 7}), unix.Connect(fd, there), unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 1000)); err != nil {
			t.Error(err)
			return
		}
		message := bytes.Repeat([]byte("0123456789"), 1050)
		if _, err := unix.Write(fd, message); err != nil {
			t.Error(err)
			return
		}
		got, packets, err := readUDP(d, 9, len(message))
		if err != nil {
			t.Error(err)
			return
		}
		if !bytes.Equal(got, message) || len(packets) != 11 {
			t.Errorf("%d packets carry %d bytes, want 11 with %d", len(packets), len(got), len(message))
		}
		whole := train.Joiner{UDP: true} // joins only what has right checksums
		for _, p := range packets {
			whole.Add(bytes.Clone(p))
		}
		if n := len(whole.Trains()); n != 1 {
			t.Errorf("the packets make %d trains, want 1", n)
		}

		// The same packets, turned round, come in.
		for _, p := range packets {
			src, dst := [4]byte(p[12:]), [4]byte(p[16:])
			copy(p[12:], dst[:])
			copy(p[16:], src[:])
			sport, dport := [2]byte(p[20:]), [2]byte(p[22:])
			copy(p[20:], dport[:])
			copy(p[22:], sport[:])
		}
		if n, err := d.Write(packets, 0); n != len(packets) || err != nil {
			t.Errorf("%d of %d written: %v", n, len(packets), err)
		}
		_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
		back := make([]byte, 0, len(message))
		for len(back) < len(message) {
			n, err := unix.Read(fd, back[len(back):cap(back)])
			if err != nil {
				t.Errorf("%d bytes came back: %v", len(back), err)
				return
			}
			back = back[:len(back)+n]
		}
		if !bytes.Equal(back, message) {
			t.Error("what came back differs")
		}
	})
}

// TestEnd wants a waiting Read to end when the device is closed, or its
// interface removed.
func TestEnd(t *testing.T) {
	for name, end := range map[string]func(d *Device) error{
		"closed":  func(d *Device) error { return d.Close() },
		"removed": func(d *Device) error { return remove("ovl0") },
	} {
		netnstest.In(t, func(t *testing.T) {
			d, err := Open("ovl0", 1420)
			if err != nil {
				t.Error(err)
				return
			}
			defer d.Close()
			up(t, "ovl0")
			ended := make(chan error, 1)
			go func() {
				bufs, sizes := [][]byte{make([]byte, 2000)}, make([]int, 1)
				for {
					if _, err := d.Read(bufs, sizes, 0); err != nil {
						ended <- err
						return
					}
				}
			}()
			if err := end(d); err != nil {
				t.Error(err)
			}
			select {
			case err := <-ended:
				if !errors.Is(err, os.ErrClosed) {
					t.Errorf("%s: %v", name, err)
				}
			case <-time.After(5 * time.Second):
				t.Errorf("%s: the reader still waits", name)
			}
			if _, err := d.Write([][]byte{datagram()}, 0); !errors.Is(err, os.ErrClosed) {
				t.Errorf("%s: write: %v", name, err)
			}
		})
	}
}

// remove deletes an interface.
func remove(name string) error {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	b := make([]byte, unix.NLMSG_HDRLEN+unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], unix.RTM_DELLINK)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	binary.NativeEndian.PutUint32(b[unix.NLMSG_HDRLEN+4:], uint32(i.Index))
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	_, err = unix.Read(fd, make([]byte, 4096)) // the acknowledgement
	return err
}

// TestInterrupt ends a Read that nothing comes for, each time, and what comes
// afterwards is read.
func TestInterrupt(t *testing.T) {
	netnstest.In(t, func(t *testing.T) {
		d, err := Open("ovl0", 1420)
		if err != nil {
			t.Error(err)
			return
		}
		defer d.Close()
		up(t, "ovl0")
		bufs, sizes := make([][]byte, batch), make([]int, batch)
		for i := range bufs {
			bufs[i] = make([]byte, 2048)
		}
		for range 100 {
			var done sync.WaitGroup
			done.Go(d.Interrupt)
			for { // what the kernel says of itself may come first
				n, err := d.Read(bufs, sizes, train.HeaderSize)
				if err != nil {
					t.Error(err)
				}
				if n == 0 {
					break
				}
			}
			done.Wait()
		}
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(s)
		if err := unix.Sendto(s, []byte("after"), 0, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{172, 18, 0, 200}}); err != nil {
			t.Error(err)
		}
		for {
			n, err := d.Read(bufs, sizes, train.HeaderSize)
			if err != nil {
				t.Error(err)
				return
			}
			for i := range n {
				if bytes.HasSuffix(bufs[i][:train.HeaderSize+sizes[i]], []byte("after")) {
					return
				}
			}
		}
	})
}
