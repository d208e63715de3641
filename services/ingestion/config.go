package ingestion

import (
	"time"

	"github.com/cohortbridge/cohortbridge/platform/fault"
)

// Config is the service's configuration.
type Config struct {
	// DataDir is the folder of the ledger (ledger.db) and the warehouse (events.duckdb).
	DataDir string `yaml:"data_dir"`
	// MaxBodyBytes is the greatest request body as sent.
	MaxBodyBytes int `yaml:"max_body_bytes"`
	// MaxDecompressedBytes is the greatest body after decompression.
	MaxDecompressedBytes int `yaml:"max_decompressed_bytes"`
	// GroupWait is how long a commit waits for requests on their way, 0 to 1 s.
	GroupWait time.Duration `yaml:"group_wait"`
	// MaxGroup is the number of events after which a commit waits no longer.
	MaxGroup int `yaml:"max_group"`
	// QueueDepth is the number of events that may wait to be stored; beyond it
	// senders are told to come back (429).
	QueueDepth int `yaml:"queue_depth"`
	// MaxConcurrent is the number of requests that are worked on at one time;
	// beyond it senders are told to come back (429). 0 is no bound.
	MaxConcurrent int `yaml:"max_concurrent"`
	// MaxInFlightBytes bounds the bodies that are worked on at one time, as sent
	// plus decompressed, in bytes; beyond it senders are told to come back (429).
	// A request takes about three times as much memory. 0 is no bound.
	MaxInFlightBytes int64 `yaml:"max_in_flight_bytes"`
	// ProjectEventsPerMinute and ProjectBytesPerMinute bound what one project sends
	// to /track and /import in a rolling minute, the bytes as uncompressed JSON;
	// beyond it senders are told to come back (429). 0, the default, is no limit.
	// Mixpanel's are about 1,800,000 events and 2,147,483,648 bytes.
	ProjectEventsPerMinute int64 `yaml:"project_events_per_minute"`
	ProjectBytesPerMinute  int64 `yaml:"project_bytes_per_minute"`
	// IdentityCache is the number of ids kept in memory, about 100 bytes each.
	IdentityCache int `yaml:"identity_cache"`
	// HashBudget is the number of dedupe hashes kept in memory, about 12 bytes each.
	HashBudget int `yaml:"hash_budget"`
	// WarehouseMemoryMB is the warehouse's buffer budget.
	WarehouseMemoryMB int `yaml:"warehouse_memory_mb"`
	// FeedInterval is how often profiles and merges are carried to the warehouse
	// without anybody asking, 10 ms to 1 h.
	FeedInterval time.Duration `yaml:"feed_interval"`
	// ProjectTTL is how long a registry answer is believed.
	ProjectTTL time.Duration `yaml:"project_ttl"`
}

// Default returns the configuration that was measured; only DataDir is left to say.
func Default() Config {
	return Config{
		MaxBodyBytes: 10 << 20, MaxDecompressedBytes: 10 << 20,
		GroupWait: 5 * time.Millisecond, MaxGroup: 20_000, QueueDepth: 100_000,
		MaxConcurrent: 1024, MaxInFlightBytes: 64 << 20,
		IdentityCache: 1_500_000, HashBudget: 3_000_000, WarehouseMemoryMB: 160, FeedInterval: time.Second, ProjectTTL: 10 * time.Second,
	}
}

// Validate names the first field that can't work, as an Invalid fault.
func (c *Config) Validate() error {
	switch {
	case c.DataDir == "":
		return fault.Field("data_dir", "required")
	case c.MaxBodyBytes < 1024:
		return fault.Field("max_body_bytes", "must be at least 1024")
	case c.MaxDecompressedBytes < c.MaxBodyBytes:
		return fault.Field("max_decompressed_bytes", "must not be below max_body_bytes")
	case c.MaxDecompressedBytes > 256<<20:
		return fault.Field("max_decompressed_bytes", "must be at most 256 MB")
	case c.GroupWait < 0 || c.GroupWait > time.Second:
		return fault.Field("group_wait", "must be 0 to 1s")
	case c.MaxGroup < 1:
		return fault.Field("max_group", "must be positive")
	case c.QueueDepth < 2000:
		return fault.Field("queue_depth", "must be at least 2000, a full batch")
	case c.MaxConcurrent < 0:
		return fault.Field("max_concurrent", "must not be negative")
	case c.MaxInFlightBytes < 0:
		return fault.Field("max_in_flight_bytes", "must not be negative")
	case c.ProjectEventsPerMinute < 0:
		return fault.Field("project_events_per_minute", "must not be negative")
	case c.ProjectBytesPerMinute < 0:
		return fault.Field("project_bytes_per_minute", "must not be negative")
	case c.IdentityCache < 1000:
		return fault.Field("identity_cache", "must be at least 1000")
	case c.HashBudget < 0:
		return fault.Field("hash_budget", "must not be negative")
	case c.WarehouseMemoryMB < 64:
		return fault.Field("warehouse_memory_mb", "must be at least 64")
	case c.FeedInterval < 10*time.Millisecond || c.FeedInterval > time.Hour:
		return fault.Field("feed_interval", "must be 10ms to 1h")
	case c.ProjectTTL < 0:
		return fault.Field("project_ttl", "must not be negative")
	}
	return nil
}
