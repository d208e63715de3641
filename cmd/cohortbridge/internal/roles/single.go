package roles

import (
	"context"
	"errors"
	"fmt"
	"os"

	"google.golang.org/grpc"

	"github.com/cohortbridge/cohortbridge/gateway"
	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	"github.com/cohortbridge/cohortbridge/platform/auth"
	"github.com/cohortbridge/cohortbridge/platform/lifecycle"
	"github.com/cohortbridge/cohortbridge/platform/rpc"
	"github.com/cohortbridge/cohortbridge/services/registry"
)

// minInternalKey is the least length of the key that single roles share.
const minInternalKey = 32

// single is what opening one role needs.
type single struct {
	cfg  *Config
	g    *lifecycle.Group
	role string
}

// Single starts one role: registry, ingestion, cohortsync or gateway.
func Single(ctx context.Context, role string, cfg *Config, g *lifecycle.Group) (Addresses, error) {
	s := &single{cfg, g, role}
	if role == "gateway" {
		return s.gateway(ctx)
	}
	if len(cfg.InternalKey) < minInternalKey {
		return Addresses{}, fmt.Errorf("internal_key: want at least %d characters, the same for all roles", minInternalKey)
	}
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return Addresses{}, fmt.Errorf("data_dir: %w", err)
	}
	return s.service(ctx)
}

func (s *single) dial(addr string, internal bool) (*grpc.ClientConn, error) {
	var conn *grpc.ClientConn
	var err error
	if internal {
		conn, err = rpc.Dial(addr, nil, auth.InternalCredentials{Key: s.cfg.InternalKey})
	} else {
		conn, err = rpc.Dial(addr, nil, nil)
	}
	if err != nil {
		return nil, err
	}
	s.g.OnStop("connection to "+addr, func(context.Context) error { return conn.Close() })
	return conn, nil
}

func (s *single) registryConn(inproc *rpc.InProcess) (grpc.ClientConnInterface, error) {
	if s.role != "registry" {
		return s.dial(s.cfg.RegistryAddr, true)
	}
	return inproc.Dial(auth.InternalCredentials{Key: s.cfg.InternalKey}), nil
}

func (s *single) gateway(ctx context.Context) (Addresses, error) {
	var conns [3]*grpc.ClientConn
	for i, addr := range []string{s.cfg.RegistryAddr, s.cfg.CohortSyncAddr, s.cfg.IngestionAddr} {
		var err error
		if conns[i], err = s.dial(addr, false); err != nil {
			return Addresses{}, err
		}
	}
	addr, err := serveGateway(ctx, s.cfg, s.g, gateway.Conns{Registry: conns[0], CohortSync: conns[1], Ingestion: conns[2]}, nil)
	return Addresses{HTTP: addr}, err
}

func (s *single) service(ctx context.Context) (Addresses, error) {
	var addrs Addresses
	inproc := rpc.NewInProcess() // the registry authenticates its own callers through it
	regConn, err := s.registryConn(inproc)
	if err != nil {
		return addrs, err
	}
	creds := registryv1.NewCredentialServiceClient(regConn)
	guard := &auth.Guard{Authenticator: registry.Authenticator(creds), InternalKey: s.cfg.InternalKey}
	if guard.OperatorKey, err = operatorKey(s.cfg.DataDir); err != nil {
		return addrs, err
	}
	if err := inproc.Guard(guard); err != nil {
		return addrs, err
	}
	srv, err := rpc.NewServer(guard)
	if err != nil {
		return addrs, err
	}
	var svc service
	start := func(context.Context) error { return nil }
	switch s.role {
	case "registry":
		svc, err = openRegistry(ctx, s.cfg)
	case "ingestion":
		svc, err = openIngestion(ctx, s.cfg, creds)
	case "cohortsync":
		evalConn, derr := s.dial(s.cfg.IngestionAddr, true)
		if derr != nil {
			return addrs, derr
		}
		cs, cerr := openCohortSync(ctx, s.cfg, ingestionv1.NewEvaluationServiceClient(evalConn), creds)
		if svc, err = cs, cerr; err == nil {
			start = cs.Start
		}
	default:
		return addrs, errors.New("unknown role " + s.role)
	}
	if err != nil {
		return addrs, err
	}
	s.g.OnStop(s.role, svc.Close)
	svc.Register(srv)
	svc.Register(inproc)
	l, err := listen(ctx, "grpc_addr", s.cfg.GRPCAddr)
	if err != nil {
		return addrs, err
	}
	addrs.GRPC = l.Addr().String()
	serveGRPC(s.g, srv, l)
	s.g.OnStop("calls", inproc.Close)
	return addrs, start(ctx)
}
