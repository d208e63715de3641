package server

import (
	"context"
	"slices"
	"time"

	"github.com/tink-crypto/tink-go/v2/tink"
	"google.golang.org/protobuf/types/known/emptypb"

	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/resource"
	"github.com/cohortbridge/cohortbridge/services/registry/internal/connector"
	"github.com/cohortbridge/cohortbridge/services/registry/internal/store"
)

// Connectors implements ConnectorService.
type Connectors struct {
	registryv1.UnimplementedConnectorServiceServer
	Store   store.Store
	AEAD    tink.AEAD
	Checker connector.Checker
	Now     func() time.Time
}

// sealed binds the ciphertext to the connector, so that it can't be moved to another.
func (s *Connectors) seal(projectID, id int64, passcode string) ([]byte, error) {
	return s.AEAD.Encrypt([]byte(passcode), []byte(resource.Name("projects", projectID, "connectors", id)))
}

func (s *Connectors) load(ctx context.Context, field, name string) (connector.Connector, error) {
	ids, err := resource.IDs(field, name, "projects", "connectors")
	if err != nil {
		return connector.Connector{}, err
	}
	c, box, err := s.Store.Connector(ctx, ids[0], ids[1])
	if err != nil {
		return c, err
	}
	plain, err := s.AEAD.Decrypt(box, []byte(resource.Name("projects", c.ProjectID, "connectors", c.ID)))
	if err != nil {
		return c, fault.New(fault.Internal, "KEY_RING", "the passcode can't be decrypted").Wrap(err)
	}
	c.Passcode = string(plain)
	return c, nil
}

func (s *Connectors) check(ctx context.Context, c *connector.Connector) {
	c.State, c.StateReason = s.Checker.Check(ctx, *c)
	c.CheckTime = s.Now()
}

// CreateConnector implements ConnectorService.
func (s *Connectors) CreateConnector(ctx context.Context, req *registryv1.CreateConnectorRequest) (*registryv1.CreateConnectorResponse, error) {
	ids, err := resource.IDs("parent", req.GetParent(), "projects")
	if err != nil {
		return nil, err
	}
	if _, err := s.Store.Project(ctx, ids[0]); err != nil {
		return nil, err
	}
	c := connector.Connector{ProjectID: ids[0], State: connector.Unchecked, CreateTime: s.Now()}
	setConnector(&c, req.GetConnector(), append([]string{"clevertap.account_id"}, connectorPaths...))
	if err := c.Normalize(); err != nil {
		return nil, err
	}
	stored, created, err := s.Store.CreateConnector(ctx, c, req.GetRequestId(), func(id int64) ([]byte, error) {
		return s.seal(c.ProjectID, id, c.Passcode)
	})
	if err != nil {
		return nil, err
	}
	if created {
		stored.Passcode = c.Passcode
		s.check(ctx, &stored)
		if err := s.Store.SetConnectorState(ctx, stored); err != nil {
			return nil, err
		}
	}
	return &registryv1.CreateConnectorResponse{Connector: connectorProto(stored)}, nil
}

// GetConnector implements ConnectorService.
func (s *Connectors) GetConnector(ctx context.Context, req *registryv1.GetConnectorRequest) (*registryv1.GetConnectorResponse, error) {
	ids, err := resource.IDs("name", req.GetName(), "projects", "connectors")
	if err != nil {
		return nil, err
	}
	c, _, err := s.Store.Connector(ctx, ids[0], ids[1])
	if err != nil {
		return nil, err
	}
	return &registryv1.GetConnectorResponse{Connector: connectorProto(c)}, nil
}

// ListConnectors implements ConnectorService.
func (s *Connectors) ListConnectors(ctx context.Context, req *registryv1.ListConnectorsRequest) (*registryv1.ListConnectorsResponse, error) {
	ids, err := resource.IDs("parent", req.GetParent(), "projects")
	if err != nil {
		return nil, err
	}
	after, err := resource.PageToken(req.GetPageToken())
	if err != nil {
		return nil, err
	}
	size := resource.PageSize(req.GetPageSize(), pageDefault, pageMax)
	list, err := s.Store.Connectors(ctx, ids[0], after, size+1)
	if err != nil {
		return nil, err
	}
	list, next := resource.NextPage(list, size, func(c connector.Connector) int64 { return c.ID })
	out := &registryv1.ListConnectorsResponse{NextPageToken: next}
	for _, c := range list {
		out.Connectors = append(out.Connectors, connectorProto(c))
	}
	return out, nil
}

// UpdateConnector implements ConnectorService.
func (s *Connectors) UpdateConnector(ctx context.Context, req *registryv1.UpdateConnectorRequest) (*registryv1.UpdateConnectorResponse, error) {
	in := req.GetConnector()
	c, err := s.load(ctx, "connector.name", in.GetName())
	if err != nil {
		return nil, err
	}
	if err := checkEtag(in.GetEtag(), c.Version); err != nil {
		return nil, err
	}
	if id := in.GetClevertap().GetAccountId(); id != "" && id != c.AccountID {
		return nil, fault.Field("connector.clevertap.account_id", "can't change; create another connector")
	}
	paths, err := maskPaths(req.GetUpdateMask(), in, connectorPaths, outputPaths)
	if err != nil {
		return nil, err
	}
	before := c
	setConnector(&c, in, slices.DeleteFunc(paths, func(p string) bool {
		return p == "clevertap.passcode" && in.GetClevertap().GetPasscode() == "" // empty keeps the stored one
	}))
	if err := c.Normalize(); err != nil {
		return nil, err
	}
	if c.Passcode != before.Passcode || c.BaseURL() != before.BaseURL() {
		s.check(ctx, &c)
	}
	box, err := s.seal(c.ProjectID, c.ID, c.Passcode)
	if err != nil {
		return nil, err
	}
	c, err = s.Store.UpdateConnector(ctx, c, box)
	if err != nil {
		return nil, err
	}
	return &registryv1.UpdateConnectorResponse{Connector: connectorProto(c)}, nil
}

// DeleteConnector implements ConnectorService.
func (s *Connectors) DeleteConnector(ctx context.Context, req *registryv1.DeleteConnectorRequest) (*emptypb.Empty, error) {
	ids, err := resource.IDs("name", req.GetName(), "projects", "connectors")
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, s.Store.DeleteConnector(ctx, ids[0], ids[1])
}

// VerifyConnector implements ConnectorService.
func (s *Connectors) VerifyConnector(ctx context.Context, req *registryv1.VerifyConnectorRequest) (*registryv1.VerifyConnectorResponse, error) {
	c, err := s.load(ctx, "name", req.GetName())
	if err != nil {
		return nil, err
	}
	s.check(ctx, &c)
	if err := s.Store.SetConnectorState(ctx, c); err != nil {
		return nil, err
	}
	return &registryv1.VerifyConnectorResponse{Connector: connectorProto(c)}, nil
}
