package roles

import (
	"context"
	"path/filepath"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	"github.com/cohortbridge/cohortbridge/services/cohortsync"
	"github.com/cohortbridge/cohortbridge/services/ingestion"
	"github.com/cohortbridge/cohortbridge/services/registry"
)

// Each service has a folder of its own below the data folder.

func openRegistry(ctx context.Context, cfg *Config) (*registry.Service, error) {
	return registry.New(ctx, registry.Config{DataDir: filepath.Join(cfg.DataDir, "registry"), AllowPrivateDestinations: cfg.AllowPrivateDestinations})
}

func openIngestion(ctx context.Context, cfg *Config, creds registryv1.CredentialServiceClient) (*ingestion.Service, error) {
	c := ingestion.Default()
	c.DataDir = filepath.Join(cfg.DataDir, "ingestion")
	// A body that is larger than it may be decompressed can't be taken, as sent or not.
	c.MaxDecompressedBytes = int(cfg.MaxDecompressedBytes)
	c.MaxBodyBytes = int(min(cfg.MaxBodyBytes, cfg.MaxDecompressedBytes))
	c.QueueDepth = cfg.QueueDepth
	c.MaxConcurrent, c.MaxInFlightBytes = cfg.MaxConcurrent, cfg.MaxInFlightBytes
	c.ProjectEventsPerMinute, c.ProjectBytesPerMinute = cfg.ProjectEventsPerMinute, cfg.ProjectBytesPerMinute
	return ingestion.New(ctx, c, ingestion.FromRegistry(creds))
}

func openCohortSync(ctx context.Context, cfg *Config, eval ingestionv1.EvaluationServiceClient, creds registryv1.CredentialServiceClient) (*cohortsync.Service, error) {
	c := cohortsync.Default()
	c.DataDir = filepath.Join(cfg.DataDir, "cohortsync")
	c.AllowPrivateDestinations = cfg.AllowPrivateDestinations
	c.RetryBackoff, c.RetryBudget = cfg.RetryInitial, cfg.RetryWindow
	c.RetryMaxBackoff, c.ThrottleBackoff = max(cfg.RetryInitial, cfg.RetryWindow/3), cfg.RetryInitial
	return cohortsync.New(ctx, c, cohortsync.Deps{Evaluation: eval, Credentials: creds})
}
