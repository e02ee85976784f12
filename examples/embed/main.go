// Embed is a program that is a member of the network by itself, without root and
// without a daemon:
//
//	embed DIR http://192.168.1.201/ [LINK]
//
// It prints the page of a LAN host, and serves one on its overlay address.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"

	"overlayd/overlay"
)

func main() {
	if len(os.Args) < 3 {
		log.Fatal("usage: embed DIR URL [LINK]")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	dir := os.Args[1]
	o := overlay.Options{StateDir: dir, Socket: filepath.Join(dir, "embed.sock"), Userspace: true}
	if len(os.Args) > 3 {
		o.Link = os.Args[3] // needed once
	}
	node, err := overlay.New(o)
	if err != nil {
		log.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- node.Run(ctx) }()

	client := http.Client{Transport: &http.Transport{DialContext: node.DialContext}}
	page, err := client.Get(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	io.Copy(os.Stdout, page.Body)
	page.Body.Close()

	listener, err := node.Listen(ctx, "tcp", ":80")
	if err != nil {
		log.Fatal(err)
	}
	go http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello, %s\n", r.RemoteAddr)
	}))
	log.Print("serving on ", listener.Addr())
	if err := <-ended; err != nil {
		log.Fatal(err)
	}
}
