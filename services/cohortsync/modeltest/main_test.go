package modeltest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	"github.com/cohortbridge/cohortbridge/platform/auth"
	"github.com/cohortbridge/cohortbridge/platform/rpc"

	"github.com/cohortbridge/cohortbridge/services/cohortsync"
)

// childEnv holds what a child process needs; its presence makes the test binary one.
const childEnv = "COHORTSYNC_MODEL_CHILD"

const internalKey = "modeltest"

// child is the engine's process.
type child struct {
	// DataDir is the engine's folder, World the address of what it asks.
	DataDir, World string
	// Clock is how far the engine's clock is ahead.
	Clock time.Duration
	// Batch is the most users of one call.
	Batch int
}

func TestMain(m *testing.M) {
	if spec := os.Getenv(childEnv); spec != "" {
		if err := serve(spec); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// serve runs the engine until SIGTERM, or until the test that started it is gone.
func serve(spec string) error {
	var c child
	if err := json.Unmarshal([]byte(spec), &c); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // it ends with the parent, however that ends
		os.Exit(3)
	}()
	up, err := rpc.Dial(c.World, nil, auth.InternalCredentials{Key: internalKey})
	if err != nil {
		return err
	}
	cfg := cohortsync.Default()
	cfg.DataDir, cfg.AllowPrivateDestinations = c.DataDir, true
	cfg.Lease, cfg.Poll, cfg.CallTimeout = time.Second, 4*time.Millisecond, 2*time.Second
	cfg.RetryTries, cfg.RetryBackoff, cfg.RetryMaxBackoff, cfg.RetryBudget = 3, time.Millisecond, 4*time.Millisecond, 5*time.Second
	cfg.ThrottleBackoff, cfg.ThrottleBudget = time.Millisecond, 5*time.Second
	cfg.GuardMinMembers, cfg.MaxBatchUsers, cfg.DefaultInterval = 30, c.Batch, 24*time.Hour
	cfg.Now = func() time.Time { return time.Now().Add(c.Clock) }
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	s, err := cohortsync.New(ctx, cfg, cohortsync.Deps{Evaluation: ingestionv1.NewEvaluationServiceClient(up), Credentials: registryv1.NewCredentialServiceClient(up), Log: log})
	if err != nil {
		return err
	}
	srv, err := rpc.NewServer(&auth.Guard{InternalKey: internalKey})
	if err != nil {
		return err
	}
	s.Register(srv)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if err := s.Start(ctx); err != nil {
		return err
	}
	fmt.Println(lis.Addr())
	context.AfterFunc(ctx, srv.Stop)
	err = srv.Serve(lis)
	return errors.Join(err, s.Close(context.Background()), up.Close())
}
