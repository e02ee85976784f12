package tunnel

import (
	"context"
	"fmt"
	"log/slog"

	"golang.zx2c4.com/wireguard/device"
)

// logger writes WireGuard's lines to log: what it calls verbose at debug level,
// its errors as warnings, since none of them ends the device.
func logger(log *slog.Logger) *device.Logger {
	at := func(level slog.Level) func(string, ...any) {
		return func(format string, args ...any) {
			if log.Enabled(context.Background(), level) {
				log.Log(context.Background(), level, "wireguard: "+fmt.Sprintf(format, args...))
			}
		}
	}
	return &device.Logger{Verbosef: at(slog.LevelDebug), Errorf: at(slog.LevelWarn)}
}
