package roles

import (
	"context"
	"fmt"
	"net"
	"os"

	"google.golang.org/grpc"

	"github.com/cohortbridge/cohortbridge/gateway"
	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	"github.com/cohortbridge/cohortbridge/platform/auth"
	"github.com/cohortbridge/cohortbridge/platform/lifecycle"
	"github.com/cohortbridge/cohortbridge/platform/rpc"
	"github.com/cohortbridge/cohortbridge/sandbox"
	"github.com/cohortbridge/cohortbridge/services/registry"
)

// Sandbox starts a sandbox and returns its address.
func Sandbox(ctx context.Context, addr string, cfg sandbox.Config, g *lifecycle.Group) (string, error) {
	s, err := sandbox.New(cfg)
	if err != nil {
		return "", err
	}
	l, err := listen(ctx, "sandbox_addr", addr)
	if err != nil {
		return "", err
	}
	g.OnStop("sandbox", func(context.Context) error { s.Close(); return nil })
	return l.Addr().String(), serveHTTP(ctx, g, "sandbox http", l, s.Handler(), "", "")
}

// service is what the parts of cohortbridge have in common.
type service interface {
	Register(r grpc.ServiceRegistrar)
	Close(ctx context.Context) error
}

// Standalone starts everything in this process. The services speak gRPC to each
// other inside the process, through the same interceptors as over the network.
func Standalone(ctx context.Context, cfg *Config, g *lifecycle.Group) (Addresses, error) {
	var addrs Addresses
	if cfg.SandboxAddr != "" {
		cfg.AllowPrivateDestinations = true // the sandbox is one
	}
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return addrs, fmt.Errorf("data_dir: %w", err)
	}
	unlock, err := lockDataDir(cfg.DataDir)
	if err != nil {
		return addrs, err
	}
	g.OnStop("data folder", func(context.Context) error { return unlock() })
	opKey, err := operatorKey(cfg.DataDir)
	if err != nil {
		return addrs, err
	}
	internalKey := randomKey()
	inproc := rpc.NewInProcess()
	internal, public := inproc.Dial(auth.InternalCredentials{Key: internalKey}), inproc.Dial(nil)
	creds := registryv1.NewCredentialServiceClient(internal)
	guard := &auth.Guard{Authenticator: registry.Authenticator(creds), InternalKey: internalKey, OperatorKey: opKey}
	if err := inproc.Guard(guard); err != nil {
		return addrs, err
	}
	srv, err := rpc.NewServer(guard)
	if err != nil {
		return addrs, err
	}
	reg, err := openRegistry(ctx, cfg)
	if err != nil {
		return addrs, err
	}
	g.OnStop("registry", reg.Close)
	ing, err := openIngestion(ctx, cfg, creds)
	if err != nil {
		return addrs, err
	}
	g.OnStop("ingestion", ing.Close)
	cs, err := openCohortSync(ctx, cfg, ingestionv1.NewEvaluationServiceClient(internal), creds)
	if err != nil {
		return addrs, err
	}
	for _, s := range []service{reg, ing, cs} {
		s.Register(srv)
		s.Register(inproc)
	}
	l, err := listen(ctx, "grpc_addr", cfg.GRPCAddr)
	if err != nil {
		return addrs, err
	}
	addrs.GRPC = l.Addr().String()
	serveGRPC(g, srv, l)
	g.OnStop("calls", inproc.Close)
	// The engine calls the others, so it starts after and stops before them.
	g.OnStop("cohortsync", cs.Close)
	if err := cs.Start(ctx); err != nil {
		return addrs, err
	}

	if cfg.SandboxAddr != "" {
		if addrs.Sandbox, err = Sandbox(ctx, cfg.SandboxAddr, sandbox.Config{}, g); err != nil {
			return addrs, err
		}
	}
	if addrs.HTTP, err = serveGateway(ctx, cfg, g, gateway.Conns{Registry: public, CohortSync: public, Ingestion: public}, func(ctx context.Context) error {
		_, err := cohortsyncv1.NewCohortServiceClient(internal).ListCohorts(ctx, &cohortsyncv1.ListCohortsRequest{Parent: "projects/0", PageSize: 1})
		return err
	}); err != nil {
		return addrs, err
	}
	if cfg.Dev {
		if err := writeDevCredentials(ctx, registryv1.NewProjectServiceClient(internal), cfg.DataDir, addrs); err != nil {
			return addrs, fmt.Errorf("dev credentials: %w", err)
		}
	}
	return addrs, nil
}

func serveGateway(ctx context.Context, cfg *Config, g *lifecycle.Group, conns gateway.Conns, readyFn func(context.Context) error) (string, error) {
	h, err := gateway.New(ctx, gateway.Config{MaxBodyBytes: cfg.MaxBodyBytes, MaxConcurrent: cfg.MaxConcurrent, MaxInFlightBytes: cfg.MaxInFlightBytes, BodyTimeout: cfg.BodyTimeout, Ready: readyFn, Read: gateway.ReadLimits{
		QueryPerHour: cfg.QueryPerHour, QueryConcurrent: cfg.QueryConcurrent,
		ExportPerHour: cfg.ExportPerHour, ExportPerSecond: cfg.ExportPerSecond, ExportConcurrent: cfg.ExportConcurrent,
	}}, conns)
	if err != nil {
		return "", err
	}
	var l net.Listener
	if l, err = listen(ctx, "http_addr", cfg.HTTPAddr); err != nil {
		return "", err
	}
	return l.Addr().String(), serveHTTP(ctx, g, "http", l, h, cfg.TLSCert, cfg.TLSKey)
}
