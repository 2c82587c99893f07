package keeper

import (
	"bytes"
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

// link is a connection with one identity certificate, and what is called through it.
type link struct {
	identity     []byte // the file as it was
	connection   *grpc.ClientConn
	certificates pb.CertificateServiceClient
	enrollment   pb.EnrollmentServiceClient
	renewals     pb.RenewalServiceClient
}

// broker is the connection to make a call with. Once the identity has been renewed on disk it is another one, and the old
// is closed: the first use of a new identity retires the one before, and who still called with that would be a second holder.
func (k *Keeper) broker() (*link, error) {
	k.linking.Lock()
	defer k.linking.Unlock()
	identity, err := os.ReadFile(k.settings.IdentityCert)
	if k.link != nil && (err != nil || bytes.Equal(identity, k.link.identity)) {
		return k.link, nil
	}
	if err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(k.settings.IdentityCert, k.settings.IdentityKey)
	if err != nil {
		if k.link != nil {
			return k.link, nil // both files change soon
		}
		return nil, err
	}
	connection, err := connect(k.settings, pair)
	if err != nil {
		return nil, err
	}
	if k.link != nil {
		_ = k.link.connection.Close()
	}
	k.link = &link{
		identity, connection, pb.NewCertificateServiceClient(connection),
		pb.NewEnrollmentServiceClient(connection), pb.NewRenewalServiceClient(connection),
	}
	return k.link, nil
}

// connect makes the channel to the broker; nothing is sent yet.
func connect(settings Settings, identity tls.Certificate) (*grpc.ClientConn, error) {
	bundle, err := os.ReadFile(settings.BrokerCA)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(bundle) {
		return nil, fmt.Errorf("%s has no certificate in PEM", settings.BrokerCA)
	}
	// A session cache is left out on purpose: the broker refuses resumed sessions.
	transport := credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: roots, Certificates: []tls.Certificate{identity},
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
