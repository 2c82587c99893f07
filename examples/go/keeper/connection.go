package keeper

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	pb "example.net/certplane-service/gen/certplane/v1"
)

const (
	callTime     = 15 * time.Second
	shortestWait = time.Second
	longestWait  = 5 * time.Minute
)

// connect makes the channel to the broker; nothing is sent yet.
func connect(settings Settings) (*grpc.ClientConn, error) {
	bundle, err := os.ReadFile(settings.BrokerCA)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(bundle) {
		return nil, fmt.Errorf("%s has no certificate in PEM", settings.BrokerCA)
	}
	transport := credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13,
		RootCAs:    roots,
		// Read for each connection: an identity that was renewed on disk is in use from the next one on. A session
		// cache is left out on purpose: the broker refuses resumed sessions.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(settings.IdentityCert, settings.IdentityKey)
			return &pair, err
		},
	})
	return grpc.NewClient("dns:///"+settings.Broker,
		grpc.WithTransportCredentials(transport),
		grpc.WithUserAgent("certplane-service/1"),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: time.Second, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 30 * time.Second},
			MinConnectTimeout: 10 * time.Second,
		}),
		// The broker allows a ping every 30 s.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 90 * time.Second, Timeout: 20 * time.Second}),
	)
}

// waitAfter is how long to wait after the n-th failure in a row (from 1): as long as the broker says (RetryInfo), else
// longer and longer, by chance so that many services don't come back together.
func waitAfter(err error, n int) time.Duration {
	for _, detail := range status.Convert(err).Details() {
		if retry, ok := detail.(*errdetails.RetryInfo); ok {
			return max(retry.GetRetryDelay().AsDuration(), shortestWait)
		}
	}
	most := min(shortestWait<<min(n, 10), longestWait)
	return most/2 + rand.N(most/2)
}

// describe is an error for people: the broker's reason first ("PROFILE_NOT_ALLOWED"), which docs/errors.md explains.
func describe(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetDomain() == "certplane" {
			return info.GetReason() + ": " + status.Convert(err).Message()
		}
	}
	return err.Error()
}

// failed is the error of an order that has ended without a certificate: what a refused call would have answered.
func failed(order *pb.Order) error {
	if err := status.ErrorProto(order.GetError()); err != nil {
		return err
	}
	return fmt.Errorf("order %s has failed", order.GetOrderId())
}
