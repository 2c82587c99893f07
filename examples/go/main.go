// Command certplane-service is an HTTPS server that gets its own certificate from a Certplane broker and keeps it fresh:
// the example of docs/integrating.md for Go. What it knows about Certplane is in the package keeper.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"example.net/certplane-service/keeper"
)

//go:generate python3 -m certplane.rpc.protos protos
//go:generate buf generate

func main() {
	log.SetFlags(0)
	if err := run(); err != nil {
		log.Fatalf("certplane-service: %v", err)
	}
}

func run() error {
	var settings keeper.Settings
	flag.StringVar(&settings.Broker, "broker", "", "the broker's `host:port`")
	flag.StringVar(&settings.BrokerCA, "broker-ca", "", "`file` with the CAs of the broker's certificate, PEM")
	flag.StringVar(&settings.IdentityCert, "identity-cert", "", "`file` with the service's identity and its chain, PEM")
	flag.StringVar(&settings.IdentityKey, "identity-key", "", "`file` with the identity's key, PEM")
	flag.StringVar(&settings.Profile, "profile", "", "`name` of the profile, as the broker's policy has it")
	flag.StringVar(&settings.Folder, "folder", "", "`folder` for the key and the certificate, 0700")
	listen := flag.String("listen", "localhost:8443", "`host:port` to serve at")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	kept, err := keeper.Open(settings)
	if err != nil {
		return err
	}
	defer kept.Close()

	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	server := &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		// Asked for each handshake: a new certificate is served from the next connection on, and none is dropped.
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: kept.GetCertificate},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintln(w, "hello")
		}),
	}
	keeping := make(chan struct{})
	go func() {
		defer close(keeping)
		kept.Run(ctx)
	}()
	go func() {
		<-ctx.Done()
		closing, done := context.WithTimeout(context.Background(), 10*time.Second)
		defer done()
		_ = server.Shutdown(closing)
	}()
	log.Printf("serving at https://%s", listener.Addr())
	if err := server.ServeTLS(listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	<-keeping
	return nil
}
