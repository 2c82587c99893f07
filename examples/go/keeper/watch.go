package keeper

import (
	"context"
	"log"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "example.net/certplane-service/gen/certplane/v1"
)

const (
	pollTime     = time.Hour        // how often the broker is asked where it tells nothing by itself
	firstSilence = 30 * time.Second // until the first message, whose heartbeat interval counts from then on
)

// watch hears from the broker what becomes of the caller's certificates, until ctx ends, and pokes the keeper: what is to
// be done is always decided from the broker's list, so that nothing depends on having heard each message.
func (k *Keeper) watch(ctx context.Context) {
	for failures := 0; ctx.Err() == nil; {
		again, err := k.listen(ctx)
		if err == nil {
			failures = 0
		} else {
			failures++
			again = waitAfter(err, failures)
			if ctx.Err() == nil {
				log.Printf("nothing is heard from the broker: %s", describe(err))
			}
		}
		if status.Code(err) == codes.Unimplemented {
			again = pollTime // a broker of an older release; the timer of Run does alone
		}
		sleep(ctx, again)
		k.poke() // what was missed meanwhile
	}
}

// listen is one call. It returns how long to stay away, as the broker's goodbye says, or what ended the call.
func (k *Keeper) listen(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	silence := firstSilence
	dead := time.AfterFunc(silence, cancel)
	defer dead.Stop()
	broker, err := k.broker()
	if err != nil {
		return 0, err
	}
	stream, err := broker.renewals.WatchMyCertificates(ctx, &pb.WatchMyCertificatesRequest{ClientVersion: "certplane-service/1"})
	if err != nil {
		return 0, err
	}
	for {
		message, err := stream.Recv()
		if err != nil {
			return 0, err
		}
		switch event := message.GetEvent().(type) {
		case *pb.WatchMyCertificatesResponse_Listening_:
			if interval := event.Listening.GetHeartbeatInterval().AsDuration(); interval > 0 {
				silence = 3 * interval
			}
			log.Printf("the broker tells what becomes of the certificate")
		case *pb.WatchMyCertificatesResponse_News:
			if event.News.GetProfile() == k.settings.Profile {
				k.poke()
			}
		case *pb.WatchMyCertificatesResponse_InForce_:
			k.poke() // what was refused may be allowed now
		case *pb.WatchMyCertificatesResponse_Goodbye_:
			return event.Goodbye.GetReconnectDelay().AsDuration(), nil
		}
		dead.Reset(silence)
	}
}

// sleep waits, and no longer than ctx.
func sleep(ctx context.Context, span time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(span):
	}
}
