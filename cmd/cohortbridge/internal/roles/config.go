// Package roles starts the parts of cohortbridge: all of them in one process
// (standalone), or each by itself.
package roles

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"time"

	"github.com/cohortbridge/cohortbridge/platform/rpc"
)

// Config is what a process is told. Every role reads the part it needs.
type Config struct {
	// DataDir is where the stores are.
	DataDir string `koanf:"data_dir"`
	// HTTPAddr is where REST and Mixpanel's routes are served, host:port.
	HTTPAddr string `koanf:"http_addr"`
	// GRPCAddr is where gRPC is served, host:port.
	GRPCAddr string `koanf:"grpc_addr"`
	// SandboxAddr is where the sandbox is served; empty for no sandbox.
	SandboxAddr string `koanf:"sandbox_addr"`
	// Dev makes the project demo and DATA/dev-credentials.json.
	Dev bool `koanf:"dev"`
	// TLSCert and TLSKey are PEM files; both or none.
	TLSCert string `koanf:"tls_cert"`
	// TLSKey belongs to TLSCert.
	TLSKey string `koanf:"tls_key"`
	// AllowPrivateDestinations lets connectors call private and loopback addresses.
	AllowPrivateDestinations bool `koanf:"allow_private_destinations"`
	// LogLevel is debug, info, warn or error.
	LogLevel string `koanf:"log_level"`
	// JaegerURL is the base URL of a Jaeger UI, for the link to the trace that the
	// demo prints.
	JaegerURL string `koanf:"jaeger_url"`

	// RegistryAddr, CohortSyncAddr and IngestionAddr are where single roles find
	// each other.
	RegistryAddr string `koanf:"registry_addr"`
	// CohortSyncAddr is the sync engine's.
	CohortSyncAddr string `koanf:"cohortsync_addr"`
	// IngestionAddr is ingestion's.
	IngestionAddr string `koanf:"ingestion_addr"`
	// InternalKey is what the single roles present to each other.
	InternalKey string `koanf:"internal_key" secret:"true"`

	// MaxBodyBytes bounds a request body as sent.
	MaxBodyBytes int64 `koanf:"max_body_bytes"`
	// MaxDecompressedBytes bounds the body of an event sender after decompression.
	MaxDecompressedBytes int64 `koanf:"max_decompressed_bytes"`
	// BodyTimeout bounds how long the body of a request may take to arrive.
	BodyTimeout time.Duration `koanf:"body_timeout"`
	// QueueDepth is how many events may wait to be stored.
	QueueDepth int `koanf:"queue_depth"`
	// MaxConcurrent and MaxInFlightBytes bound the requests of event senders that
	// the gateway and ingestion each work on at one time, and the bytes of their bodies.
	MaxConcurrent int `koanf:"max_concurrent"`
	// MaxInFlightBytes belongs to MaxConcurrent.
	MaxInFlightBytes int64 `koanf:"max_in_flight_bytes"`
	// ProjectEventsPerMinute and ProjectBytesPerMinute bound what one project sends
	// in a rolling minute; 0 is no limit.
	ProjectEventsPerMinute int64 `koanf:"project_events_per_minute"`
	// ProjectBytesPerMinute is of uncompressed JSON.
	ProjectBytesPerMinute int64 `koanf:"project_bytes_per_minute"`
	// QueryPerHour and QueryConcurrent bound the queries of one project over
	// Mixpanel's routes; 0 is no limit. Each gateway counts for itself.
	QueryPerHour int `koanf:"query_per_hour"`
	// QueryConcurrent is how many may run at one time.
	QueryConcurrent int `koanf:"query_concurrent"`
	// ExportPerHour, ExportPerSecond and ExportConcurrent bound the raw exports of
	// one project; 0 is no limit.
	ExportPerHour int `koanf:"export_per_hour"`
	// ExportPerSecond is in a rolling second.
	ExportPerSecond int `koanf:"export_per_second"`
	// ExportConcurrent is how many may run at one time.
	ExportConcurrent int `koanf:"export_concurrent"`
	// RetryWindow bounds how long a batch is retried within a run.
	RetryWindow time.Duration `koanf:"retry_window"`
	// RetryInitial is the first pause between tries.
	RetryInitial time.Duration `koanf:"retry_initial"`
}

// Default is the configuration of a process that is told nothing.
func Default() *Config {
	return &Config{
		DataDir: "./data", HTTPAddr: "127.0.0.1:8080", GRPCAddr: "127.0.0.1:9090", LogLevel: "info",
		RegistryAddr: "127.0.0.1:9091", CohortSyncAddr: "127.0.0.1:9092", IngestionAddr: "127.0.0.1:9093",
		MaxBodyBytes: 16 << 20, MaxDecompressedBytes: 10 << 20, BodyTimeout: time.Minute, QueueDepth: 100_000, MaxConcurrent: 1024, MaxInFlightBytes: 64 << 20,
		// Mixpanel's: https://developer.mixpanel.com/reference/rate-limits.
		QueryPerHour: 60, QueryConcurrent: 5, ExportPerHour: 60, ExportPerSecond: 3, ExportConcurrent: 100,
		RetryWindow: time.Minute, RetryInitial: time.Second,
	}
}

// Bounds of the sizes of bodies. A body travels to ingestion in one message, whose
// other fields have the rest.
const (
	minBody         = 1024
	maxBody         = rpc.MaxMessageBytes - 1<<20
	maxDecompressed = 256 << 20
)

// maxReads bounds the limits of reads: the time of each is remembered.
const maxReads = 100_000

// Validate names the key that is wrong and what would be right.
func (c *Config) Validate() error {
	if c.DataDir == "" {
		return errors.New("data_dir: want a folder")
	}
	for key, addr := range map[string]string{"http_addr": c.HTTPAddr, "grpc_addr": c.GRPCAddr, "sandbox_addr": c.SandboxAddr} {
		if addr == "" && key == "sandbox_addr" {
			continue
		}
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return fmt.Errorf("%s: want host:port, got %q", key, addr)
		}
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		return errors.New("tls_cert and tls_key: want both or none")
	}
	if c.JaegerURL != "" {
		if u, err := url.Parse(c.JaegerURL); err != nil || u.Host == "" {
			return errors.New("jaeger_url: want an absolute URL")
		}
	}
	for key, b := range map[string]struct{ n, most int64 }{"max_body_bytes": {c.MaxBodyBytes, maxBody}, "max_decompressed_bytes": {c.MaxDecompressedBytes, maxDecompressed}} {
		if b.n < minBody || b.n > b.most {
			return fmt.Errorf("%s: want %d to %d bytes, got %d", key, minBody, b.most, b.n)
		}
	}
	if c.BodyTimeout <= 0 {
		return fmt.Errorf("body_timeout: want a positive duration, got %s", c.BodyTimeout)
	}
	for key, n := range map[string]int64{"max_concurrent": int64(c.MaxConcurrent), "max_in_flight_bytes": c.MaxInFlightBytes} {
		if n < 1 {
			return fmt.Errorf("%s: want a positive number, got %d", key, n)
		}
	}
	for key, n := range map[string]int{"query_per_hour": c.QueryPerHour, "query_concurrent": c.QueryConcurrent, "export_per_hour": c.ExportPerHour, "export_per_second": c.ExportPerSecond, "export_concurrent": c.ExportConcurrent} {
		if n < 0 || n > maxReads {
			return fmt.Errorf("%s: want 0, for no limit, to %d, got %d", key, maxReads, n)
		}
	}
	if c.RetryInitial <= 0 || c.RetryWindow < c.RetryInitial {
		return errors.New("retry_initial and retry_window: want 0 < retry_initial ≤ retry_window")
	}
	_, err := c.Level()
	return err
}

// Level is the log level.
func (c *Config) Level() (slog.Level, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return l, fmt.Errorf("log_level: want debug, info, warn or error, got %q", c.LogLevel)
	}
	return l, nil
}
