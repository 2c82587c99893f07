// Package keeper keeps a service's certificate fresh: its key is made here and never leaves the folder, the certificate
// comes from a Certplane broker, and what is in use changes under a running server.
//
// A service that starts while the broker is away serves what is on disk; one that dies in the middle of a renewal goes on
// with the same key, so that the broker has one order of it and not two.
package keeper

import (
	"context"
	"crypto"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "example.net/certplane-service/gen/certplane/v1"
)

const (
	orderTime = 5 * time.Minute // how long one call waits for an order; the order goes on without it
	giveUp    = time.Minute     // how long a handshake of a service without any certificate waits for the first
)

// Settings are where things are. All are required.
type Settings struct {
	Broker                    string // host:port
	BrokerCA                  string // file, PEM
	IdentityCert, IdentityKey string // files, PEM; looked at before each call
	Profile                   string // as the broker's policy has it
	Folder                    string // for key and certificate; made 0700
}

func (s Settings) check() error {
	for _, each := range [][2]string{
		{"broker", s.Broker}, {"broker-ca", s.BrokerCA}, {"identity-cert", s.IdentityCert},
		{"identity-key", s.IdentityKey}, {"profile", s.Profile}, {"folder", s.Folder},
	} {
		if each[1] == "" {
			return fmt.Errorf("-%s is missing", each[0])
		}
	}
	return nil
}

// A Keeper has one profile's certificate.
type Keeper struct {
	settings Settings
	store    store
	linking  sync.Mutex
	link     *link
	current  atomic.Pointer[tls.Certificate]
	first    chan struct{} // closed once there is a certificate
	poked    chan struct{} // room for one: to look now is to look at all
}

// Open reads what is on disk; it asks nobody yet.
func Open(settings Settings) (*Keeper, error) {
	if err := settings.check(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(settings.Folder, 0o700); err != nil {
		return nil, err
	}
	kept := store{settings.Folder}
	pair, err := kept.pair()
	if err != nil {
		return nil, err
	}
	k := &Keeper{settings: settings, store: kept, first: make(chan struct{}), poked: make(chan struct{}, 1)}
	if _, err := k.broker(); err != nil {
		return nil, err
	}
	if pair != nil {
		k.use(pair)
	}
	return k, nil
}

// Close ends the connection to the broker.
func (k *Keeper) Close() error { return k.link.connection.Close() }

// GetCertificate is for tls.Config: the newest certificate. The first handshakes of a service without any wait for it.
func (k *Keeper) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	select {
	case <-k.first:
		return k.current.Load(), nil
	case <-hello.Context().Done():
		return nil, hello.Context().Err()
	case <-time.After(giveUp):
		return nil, errors.New("there is no certificate yet")
	}
}

// Run keeps the certificate fresh until ctx ends.
func (k *Keeper) Run(ctx context.Context) {
	done := make(chan struct{})
	go func() { defer close(done); k.watch(ctx) }()
	for failures := 0; ctx.Err() == nil; {
		wait, err := k.step(ctx)
		if err == nil {
			failures = 0
		} else if ctx.Err() == nil {
			failures++
			wait = waitAfter(err, failures)
			log.Printf("%s; trying again in %s", describe(err), wait.Round(time.Second))
		}
		select {
		case <-ctx.Done():
		case <-k.poked:
		case <-time.After(wait):
		}
	}
	<-done
}

// step does what is to be done now, and says when to look again.
func (k *Keeper) step(ctx context.Context) (time.Duration, error) {
	known, err := k.known(ctx)
	if err != nil {
		return 0, err
	}
	now := time.Now()
	if known != nil && known.GetRevokeTime() == nil && known.GetRenewTime().AsTime().After(now) {
		return min(time.Until(known.GetRenewTime().AsTime()), pollTime), nil
	}
	return shortestWait, k.renew(ctx, known)
}

// known is what the broker knows of the certificate in use; nil where there is none, or where it isn't the broker's.
func (k *Keeper) known(ctx context.Context) (*pb.Certificate, error) {
	pair := k.current.Load()
	if pair == nil {
		return nil, nil
	}
	serial := pair.Leaf.SerialNumber.Text(16)
	for token := ""; ; {
		answer, err := k.list(ctx, token)
		if err != nil {
			return nil, err
		}
		for _, each := range answer.GetCertificates() {
			if each.GetSerialNumber() == serial {
				return each, nil
			}
		}
		if token = answer.GetNextPageToken(); token == "" {
			return nil, nil
		}
	}
}

func (k *Keeper) list(ctx context.Context, token string) (*pb.ListCertificatesResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	broker, err := k.broker()
	if err != nil {
		return nil, err
	}
	return broker.certificates.ListCertificates(ctx, &pb.ListCertificatesRequest{
		Profile: k.settings.Profile, IncludeUnusable: true, PageToken: token,
	})
}

// names are what the policy gives the profile: a request has exactly these.
func (k *Keeper) names(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	broker, err := k.broker()
	if err != nil {
		return nil, err
	}
	answer, err := broker.enrollment.GetIdentity(ctx, &pb.GetIdentityRequest{})
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(answer.GetGrantedProfiles(), func(each *pb.GrantedProfile) bool {
		return each.GetName() == k.settings.Profile
	})
	if at < 0 {
		return nil, fmt.Errorf("the broker's policy gives %s no profile %q; it gives %q",
			answer.GetIdentity().GetName(), k.settings.Profile, answer.GetIdentity().GetProfiles())
	}
	return answer.GetGrantedProfiles()[at].GetDnsNames(), nil
}

// renew gets a certificate of a new key, in the place of known where there is one, and puts it into use.
func (k *Keeper) renew(ctx context.Context, known *pb.Certificate) error {
	names, err := k.names(ctx)
	if err != nil {
		return err
	}
	key, err := k.store.nextKey(k.current.Load())
	if err != nil {
		return err
	}
	request, err := encodeRequest(key, names)
	if err != nil {
		return err
	}
	order, certificate, err := k.ask(ctx, known, request)
	if err != nil {
		return err
	}
	if order.GetState() == pb.Order_STATE_FAILED {
		return failed(order)
	}
	if certificate == nil {
		return fmt.Errorf("order %s is not done: %s", order.GetOrderId(), order.GetTrouble())
	}
	return k.install(key, certificate)
}

func (k *Keeper) ask(ctx context.Context, known *pb.Certificate, request string) (*pb.Order, *pb.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, orderTime+callTime)
	defer cancel()
	broker, err := k.broker()
	if err != nil {
		return nil, nil, err
	}
	wait := durationpb.New(orderTime)
	if known == nil || known.GetRevokeTime() != nil {
		answer, err := broker.certificates.IssueCertificate(ctx, &pb.IssueCertificateRequest{
			Profile: k.settings.Profile, CsrPem: request, WaitDuration: wait,
		})
		return answer.GetOrder(), answer.GetCertificate(), err
	}
	answer, err := broker.certificates.RenewCertificate(ctx, &pb.RenewCertificateRequest{
		Profile: k.settings.Profile, CertificateId: known.GetCertificateId(), CsrPem: request, WaitDuration: wait,
	})
	return answer.GetOrder(), answer.GetCertificate(), err
}

func (k *Keeper) install(key crypto.Signer, certificate *pb.Certificate) error {
	pair, err := k.store.keep(key, certificate.GetCertificatePem()+certificate.GetChainPem())
	if err != nil {
		return err
	}
	k.use(pair)
	log.Printf("certificate %s is in use until %s", certificate.GetSerialNumber(),
		certificate.GetNotAfterTime().AsTime().Format(time.RFC3339))
	return nil
}

func (k *Keeper) use(pair *tls.Certificate) {
	if k.current.Swap(pair) == nil {
		close(k.first)
	}
}

func (k *Keeper) poke() {
	select {
	case k.poked <- struct{}{}:
	default: // it looks soon anyhow
	}
}
